//go:build unix

package main

import (
	"fmt"
	"os"
	"syscall"
)

// hideDSN takes a DSN of the command line out of the list of processes: the process
// executes itself without it, and reads it from a pipe. The last rest arguments are
// the command's. It returns where there is nothing to hide, or no way to.
func hideDSN(dsn string, rest int) {
	args := withoutDSN(os.Args, rest)
	args[0] = "sqllock" // by which run may have named its command
	self, err := os.Executable()
	if len(args) == len(os.Args) || err != nil || len(dsn) > maxHidden {
		return
	}
	var p [2]int
	if syscall.Pipe(p[:]) != nil {
		return
	}
	_, err = syscall.Write(p[1], []byte(dsn))
	_ = syscall.Close(p[1])
	if err == nil {
		_ = syscall.Exec(self, args, append(os.Environ(), fmt.Sprintf("%s=%d", dsnFD, p[0])))
	}
	_ = syscall.Close(p[0])
}
