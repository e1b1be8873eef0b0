package session

import (
	"fmt"
	"os"
	"path/filepath"
)

// Process says who we are to the operator who lists the locks: "host/pid program", in
// printable ASCII, of 255 characters at most.
func Process() string {
	host, _ := os.Hostname() // an empty one says enough
	s := fmt.Appendf(nil, "%s/%d %s", host, os.Getpid(), filepath.Base(os.Args[0]))
	for i, c := range s {
		if c < ' ' || c > '~' {
			s[i] = '_'
		}
	}
	return string(s[:min(len(s), 255)])
}
