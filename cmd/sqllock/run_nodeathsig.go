//go:build unix && !linux

package main

import "syscall"

// dieWithParent does nothing: here a command goes on when sqllock is killed by SIGKILL.
func dieWithParent(*syscall.SysProcAttr) {}
