package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/sqllock"
)

// jsonFlag is that of every command whose answer programs may want.
func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "answer in JSON: durations in seconds, times as in RFC 3339"}
}

// yesFlag is that of the commands that ask.
func yesFlag() cli.Flag {
	return &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}
}

// printJSON prints v on several lines, for people who read along.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printLine prints v on one line.
func printLine(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printTable prints rows under a header, in columns that are as wide as they need. An
// empty cell is a dash, so that every line has as many fields.
func printTable(w io.Writer, header []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if header != nil {
		fmt.Fprintln(t, strings.Join(header, "\t"))
	}
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = cmp.Or(printable(cell), "-")
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	return t.Flush()
}

// printable keeps what comes from the server from moving the cursor, or the columns.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// span is a duration for people: with two units at most.
func span(d time.Duration) string {
	if d < 0 {
		return "-" + span(-d)
	}
	switch {
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// Kinds of locks.
const (
	lease     = "lease"
	ofSession = "session"
)

// held is one who has a lock, or what a dead one has left.
type held struct {
	sqllock.Holder
	kind string    // lease, or ofSession
	now  time.Time // the server's clock when it was asked
}

// age is since when it is known to be as it is.
func (h *held) age() (time.Duration, bool) {
	if h.Since.IsZero() {
		return 0, false
	}
	return max(h.now.Sub(h.Since), 0), true
}

// who is user and host, as far as they are known.
func (h *held) who() string {
	if h.User == "" && h.Host == "" {
		return ""
	}
	return cmp.Or(h.User, "?") + "@" + cmp.Or(h.Host, "?")
}

// heldJSON is held as programs read it. What is not known is null, or "".
type heldJSON struct {
	Key      string     `json:"key"`
	Kind     string     `json:"kind"`
	Alive    bool       `json:"alive"`
	Session  int64      `json:"session"`
	User     string     `json:"user"`
	Host     string     `json:"host"`
	Database string     `json:"database"`
	State    string     `json:"state"`
	Process  string     `json:"process"`
	Token    int64      `json:"token"`
	Since    *time.Time `json:"since"`
	Age      *float64   `json:"age_seconds"`
	Expires  *time.Time `json:"expires"`
	TimeLeft *float64   `json:"time_left_seconds"`
}

func (h *held) json() heldJSON {
	j := heldJSON{
		Key: h.Key, Kind: h.kind, Alive: h.Alive, Session: h.Session, User: h.User, Host: h.Host,
		Database: h.Database, State: h.State, Process: h.Process, Token: h.Token,
	}
	if age, ok := h.age(); ok {
		since, seconds := h.Since.UTC(), age.Seconds()
		j.Since, j.Age = &since, &seconds
	}
	if !h.Expires.IsZero() {
		expires, seconds := h.Expires.UTC(), h.TimeLeft.Seconds()
		j.Expires, j.TimeLeft = &expires, &seconds
	}
	return j
}

func allJSON(all []held) []heldJSON {
	out := make([]heldJSON, len(all)) // [] and not null for none
	for i := range all {
		out[i] = all[i].json()
	}
	return out
}

// oneName is the argument of a command that takes the name of a lock.
func oneName(cmd *cli.Command) (string, error) {
	args := cmd.Args().Slice()
	if len(args) != 1 {
		return "", usage("%s takes one argument, the name of a lock, and got %d; see %s --help", cmd.FullName(), len(args), cmd.FullName())
	}
	return args[0], nil
}

// noArgs refuses what a command would not heed.
func noArgs(cmd *cli.Command) error {
	if n := cmd.Args().Len(); n > 0 {
		return usage("%s takes no arguments, and got %q; see %s --help", cmd.FullName(), shown(cmd.Args().First()), cmd.FullName())
	}
	return nil
}

// command is the command line that does what for a name, as the user of s would type it.
func (s *server) command(what, name string) string {
	line := "sqllock " + what
	if s.namespace != "" {
		line += " --namespace " + quoted(s.namespace)
	}
	return line + " " + quoted(name)
}

// quoted is s as a shell takes it for one word.
func quoted(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-.:/@%+=,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// isTerminal tells whether somebody sits there. A shell gives a job in the background
// /dev/null.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	is, err := f.Stat()
	if err != nil || is.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(is, null)
}

// confirm asks, unless the user has said yes before. It returns an error if the answer is
// no, or if there is nobody to ask.
func confirm(ctx context.Context, cmd *cli.Command, question string) error {
	if cmd.Bool("yes") {
		return nil
	}
	if !isTerminal(cmd.Root().Reader) {
		return usage("nobody is there to ask (standard input is no terminal), and nothing was done; --yes does it without asking")
	}
	fmt.Fprint(cmd.Root().Writer, question+" [y/N] ")
	answer := make(chan string, 1)
	go func() { // it ends with the process, if not before
		line, _ := bufio.NewReader(cmd.Root().Reader).ReadString('\n')
		answer <- line
	}()
	select {
	case line := <-answer:
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "y", "yes":
			return nil
		}
		return &exitError{exitNo, errors.New("nothing was done")}
	case <-ctx.Done():
		fmt.Fprintln(cmd.Root().Writer)
		return fmt.Errorf("nothing was done: %w", context.Cause(ctx))
	}
}

// advise adds to an error of the library what of this command line helps.
func advise(err error) error {
	switch {
	case errors.Is(err, sqllock.ErrNoTable):
		return fmt.Errorf("%w (sqllock migrate up makes the table; --table names another one)", err)
	case errors.Is(err, sqllock.ErrUnsupported), errors.Is(err, sqllock.ErrPermission):
		return fmt.Errorf("%w (sqllock doctor has more)", err)
	}
	return err
}
