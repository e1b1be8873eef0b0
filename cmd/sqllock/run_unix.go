//go:build unix

package main

import (
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// endingSignals end sqllock while it has no command to pass them on to.
func endingSignals() []os.Signal {
	return []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM}
}

// passedSignals go on to the command, too.
func passedSignals() []os.Signal {
	return []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGTSTP}
}

// continuing is the signal that has us, and the command, go on.
func continuing() []os.Signal { return []os.Signal{syscall.SIGCONT} }

func signalNumber(s os.Signal) int {
	n, _ := s.(syscall.Signal)
	return int(n)
}

func signalName(s os.Signal) string {
	n, _ := s.(syscall.Signal)
	return unix.SignalName(n)
}

// A child is the command: the leader of a process group of its own. Where there is a
// terminal, and sqllock has it, the command has it instead; when the command is stopped
// (Ctrl-Z), sqllock and its group stop as well, and the shell has its prompt.
type child struct {
	pid      int
	tty      *os.File            // the controlling terminal, or nil
	has      bool                // the terminal, or had when it was stopped
	ended    chan int            // the exit code
	signaled bool                // a signal ended it; valid when ended has been received from
	stops    chan syscall.Signal // it was stopped

	mu     sync.Mutex // guards reaped
	reaped bool       // the id may be another's by now
}

// start starts the command, and waits for it on the thread that started it: the signal
// for the death of the parent is for that of the thread.
func start(path string, argv, env []string) (*child, error) {
	c := &child{ended: make(chan int, 1), stops: make(chan syscall.Signal, 1)}
	attr := &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(attr)
	if tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
		c.tty = tty
		if c.isForeground(syscall.Getpgrp()) && onTTY(0) && onTTY(1) {
			attr.Foreground, attr.Ctty = true, int(tty.Fd())
			c.has = true
		}
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var err error
		c.pid, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}, Sys: attr})
		started <- err
		if err != nil {
			return
		}
		defer signal.Stop(children)
		for !c.reap() {
			<-children
		}
	}()
	err := <-started
	if c.tty != nil {
		signal.Ignore(syscall.SIGTTOU) // to have the terminal back; the command is not to inherit it
		if err != nil && c.has {
			c.setForeground(syscall.Getpgrp())
		}
	}
	return c, err
}

// reap reports true when the command has ended.
func (c *child) reap() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(c.pid, &status, syscall.WNOHANG|syscall.WUNTRACED, nil)
		switch {
		case err == syscall.EINTR:
		case pid <= 0:
			return false
		case status.Stopped():
			select {
			case c.stops <- status.StopSignal():
			default:
			}
		default:
			c.reaped = true
			c.takeBack()
			code := status.ExitStatus()
			if c.signaled = status.Signaled(); c.signaled {
				code = exitSignal + int(status.Signal())
			}
			c.ended <- code
			return true
		}
	}
}

// send sends a signal to the group. Without its leader it is still this group as long as
// there is one of the name.
func (c *child) send(s syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped || c.aliveLocked() {
		_ = syscall.Kill(-c.pid, s)
	}
}

func (c *child) aliveLocked() bool { return syscall.Kill(-c.pid, 0) != syscall.ESRCH }

// pass passes a signal on to the command's group.
func (c *child) pass(s os.Signal) {
	n, _ := s.(syscall.Signal)
	c.send(n)
}

// stop asks the group to end, also what is stopped.
func (c *child) stop() {
	c.send(syscall.SIGTERM)
	c.send(syscall.SIGCONT)
}

func (c *child) kill() { c.send(syscall.SIGKILL) }

// left reports whether something is left of the group of a command that has ended. It
// takes what has been left to us, where we are the first process of a container.
func (c *child) left() bool {
	for {
		pid, err := syscall.Wait4(-c.pid, nil, syscall.WNOHANG, nil)
		if pid <= 0 && err != syscall.EINTR {
			return c.aliveLocked()
		}
	}
}

// suspend is what follows when the command has been stopped. It returns when we have
// been told to go on, which continued says, and reports whether the command is to go on.
func (c *child) suspend(why syscall.Signal, continued <-chan os.Signal) (goOn bool) {
	if c.tty == nil {
		return false // who stopped it continues it
	}
	if (why == syscall.SIGTTIN || why == syscall.SIGTTOU) && c.isForeground(syscall.Getpgrp()) {
		c.has = true
		return true
	}
	c.takeBack()
	select {
	case <-continued: // before the command was stopped
	default:
	}
	// SIGTSTP would say it better, but is one that we listen to, which Go can't undo.
	_ = syscall.Kill(0, syscall.SIGTTIN)
	select {
	case <-continued:
		return true
	case <-time.After(200 * time.Millisecond): // nobody could continue us, so the kernel has not stopped us
	}
	// Or it has, for longer than that, and what has continued us is still to be told.
	select {
	case <-continued:
	case <-time.After(50 * time.Millisecond):
	}
	return true
}

// resume continues the command, with the terminal if it had it and we have it.
func (c *child) resume() {
	if c.has && c.isForeground(syscall.Getpgrp()) {
		c.setForeground(c.pid)
	}
	c.send(syscall.SIGCONT)
}

// takeBack takes the terminal from the command.
func (c *child) takeBack() {
	if c.isForeground(c.pid) {
		c.setForeground(syscall.Getpgrp())
	}
}

func (c *child) isForeground(group int) bool {
	if c.tty == nil {
		return false
	}
	g, err := unix.IoctlGetInt(int(c.tty.Fd()), unix.TIOCGPGRP)
	return err == nil && g == group
}

func (c *child) setForeground(group int) {
	_ = unix.IoctlSetPointerInt(int(c.tty.Fd()), unix.TIOCSPGRP, group)
}

// onTTY reports whether a descriptor is the terminal.
func onTTY(fd int) bool {
	_, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil
}
