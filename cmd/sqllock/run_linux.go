package main

import "syscall"

// dieWithParent has the kernel kill the command when sqllock ends, however it does.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
