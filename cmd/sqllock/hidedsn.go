package main

import (
	"os"
	"strconv"
	"strings"
)

// dsnFD names, from the program that was started with --dsn to the one that it
// becomes, the descriptor to read the DSN from.
const dsnFD = "SQLLOCK_DSN_FD"

// withoutDSN is a command line without --dsn and its value. The last rest arguments
// are those of the command to run, and stay as they are.
func withoutDSN(args []string, rest int) []string {
	ours := len(args) - rest
	var out []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case i >= ours || arg == "--":
			return append(out, args[i:]...)
		case arg == "--dsn" || arg == "-dsn":
			i++
		case strings.HasPrefix(arg, "--dsn=") || strings.HasPrefix(arg, "-dsn="):
		default:
			out = append(out, arg)
		}
	}
	return out
}

// handedDSN returns the DSN that the process has handed to itself, if it has. The
// processes that it starts get nothing of it.
func handedDSN() string {
	fd, err := strconv.Atoi(os.Getenv(dsnFD))
	if os.Getenv(dsnFD) == "" || err != nil {
		return ""
	}
	_ = os.Unsetenv(dsnFD)
	f := os.NewFile(uintptr(fd), "dsn")
	if f == nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // it was only read
	b := make([]byte, maxHidden)
	n, _ := f.Read(b) // it was written at once
	return string(b[:n])
}

// maxHidden is what a pipe takes at once, on every system.
const maxHidden = 4096
