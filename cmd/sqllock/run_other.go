//go:build !unix

package main

import (
	"os"
	"os/exec"
)

// endingSignals end sqllock while it has no command to pass them on to.
func endingSignals() []os.Signal { return []os.Signal{os.Interrupt} }

// passedSignals are none: what comes from the console comes to the command as well.
func passedSignals() []os.Signal { return nil }

func continuing() []os.Signal { return nil }

func signalNumber(os.Signal) int { return 2 }

func signalName(s os.Signal) string { return s.String() }

// A child is the command. There are no signals here, so it is stopped at once.
type child struct {
	process  *os.Process
	ended    chan int
	signaled bool
	stops    chan os.Signal // never
}

func start(path string, argv, env []string) (*child, error) {
	cmd := exec.Cmd{Path: path, Args: argv, Env: env, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{process: cmd.Process, ended: make(chan int, 1)}
	go func() {
		_ = cmd.Wait() // the code says it
		c.ended <- cmd.ProcessState.ExitCode()
	}()
	return c, nil
}

func (c *child) pass(os.Signal) {}

func (c *child) stop() { c.kill() }

func (c *child) kill() { _ = c.process.Kill() }

func (c *child) left() bool { return false }

func (c *child) suspend(os.Signal, <-chan os.Signal) bool { return false }

func (c *child) resume() {}
