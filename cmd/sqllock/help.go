package main

import (
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/urfave/cli/v3"
)

// width is that of the help, in columns.
const width = 80

const rootManual = `Brings locks of package github.com/sqllock/go-sqllock to the shell: runs a command while a lock is held, on one of many hosts at a time, and tells an operator who holds what.

The database is named by a DSN, best in the environment variable SQLLOCK_DSN or in a file (see FILES). A lock has a name; the same name under the same namespace is the same lock, for the commands here and for programs that use the package.

sqllock help COMMAND has the manual of a command.

EXIT STATUS
  0    done
  1    no: nobody has it (who, break), or something is not as it has to be (doctor)
  64   the command line, a file or the environment is wrong
  69   the server can't be reached, or refuses
  75   another one holds the lock
  79   the lock was lost while the command ran; it has been stopped
  126  the command can't be executed
  127  the command was not found
  128+n  ended by signal n; 143 is SIGTERM

run hands on the exit status of its command.

ENVIRONMENT
  SQLLOCK_DSN        the DSN; --dsn and --dsn-file come first
  SQLLOCK_DSN_FILE   a file with it, where SQLLOCK_DSN is not set
  SQLLOCK_NAMESPACE  as --namespace
  SQLLOCK_TABLE      as --table

FILES
A file with a DSN has it on one line. Nobody but its user should be able to read it:

  install -m 600 /dev/null /etc/billing/dsn
  echo 'mysql://billing:secret@db.internal/billing' > /etc/billing/dsn

A DSN that is given by --dsn is taken out of the list of processes, but other users may have seen it there, and your shell's history keeps it.

DSN
  mysql://USER:PASSWORD@HOST:3306/DATABASE?tls=true
  mysql://USER:PASSWORD@localhost/DATABASE?socket=/run/mysqld/mysqld.sock
  postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full
  USER:PASSWORD@tcp(HOST:3306)/DATABASE

mariadb:// and postgresql:// are the same. In a URL the characters @ : / # ? % of a password are written as %40 %3A %2F %23 %3F %25. The parameters are those of Go's drivers, github.com/go-sql-driver/mysql and github.com/jackc/pgx. Locks of sessions need no database on MySQL and MariaDB.

COMPLETION
  source <(sqllock completion bash)
  source <(sqllock completion zsh)
  sqllock completion fish > ~/.config/fish/completions/sqllock.fish
`

// printManuals has the library print manuals in the place of its help.
var printManuals = sync.OnceFunc(func() { //nolint:gochecknoglobals // so is what it sets
	cli.HelpPrinter = func(w io.Writer, _ string, data any) {
		if c, ok := data.(*cli.Command); ok {
			fmt.Fprint(w, manual(c))
		}
	}
})

// manual is the help of a command, in the order of a manual page. A Description is
// paragraphs, which are wrapped, and lines that begin with a space, which are not. What
// follows its first line in capitals are sections that come after the options.
func manual(c *cli.Command) string {
	var b strings.Builder
	description, sections := c.Description, ""
	for i := 0; i < len(description); {
		line, _, _ := strings.Cut(description[i:], "\n")
		if heading(line) {
			description, sections = description[:i], description[i:]
			break
		}
		i += len(line) + 1
	}
	section(&b, "NAME", c.FullName()+" - "+c.Usage)
	section(&b, "SYNOPSIS", synopsis(c))
	section(&b, "DESCRIPTION", description)
	commands(&b, c)
	options(&b, "OPTIONS", c.VisibleFlags())
	if len(c.Lineage()) > 1 {
		options(&b, "OPTIONS OF ALL COMMANDS", c.VisiblePersistentFlags())
	}
	name, text := "", ""
	for line := range strings.Lines(sections) {
		if heading(strings.TrimSuffix(line, "\n")) {
			section(&b, name, text)
			name, text = strings.TrimSpace(line), ""
			continue
		}
		text += line
	}
	section(&b, name, text)
	return b.String()
}

func heading(line string) bool {
	return line != "" && line[0] >= 'A' && line[0] <= 'Z' && strings.ToUpper(line) == line && len(line) > 2
}

func synopsis(c *cli.Command) string {
	if c.UsageText != "" {
		return " " + strings.ReplaceAll(strings.TrimSpace(c.UsageText), "\n", "\n ")
	}
	s := " " + c.FullName() + " [OPTIONS]"
	if len(c.VisibleCommands()) > 0 {
		s += " COMMAND"
	}
	if c.ArgsUsage != "" {
		s += " " + c.ArgsUsage
	}
	return s
}

func commands(b *strings.Builder, c *cli.Command) {
	visible := c.VisibleCommands()
	if len(visible) == 0 {
		return
	}
	fmt.Fprint(b, "COMMANDS\n")
	category := ""
	for _, sub := range visible {
		if sub.Category != category {
			category = sub.Category
			if category != "" {
				fmt.Fprintf(b, "   %s\n", category)
			}
		}
		fmt.Fprintln(b, strings.TrimRight(fmt.Sprintf("      %-10s %s", sub.Name, sub.Usage), " "))
	}
	fmt.Fprint(b, "\n")
}

func options(b *strings.Builder, name string, flags []cli.Flag) {
	if len(flags) == 0 {
		return
	}
	fmt.Fprintf(b, "%s\n", name)
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		value, text := placeholder(d)
		var names []string
		for _, n := range f.Names() {
			names = append(names, strings.Repeat("-", min(len(n), 2))+n)
		}
		fmt.Fprintf(b, "   %s%s\n", strings.Join(names, ", "), value)
		wrapped(b, text, "          ")
	}
	fmt.Fprint(b, "\n")
}

// placeholder takes the word in backquotes out of the usage of a flag, as the name of
// its value, and adds default and environment to it.
func placeholder(f cli.DocGenerationFlag) (value, text string) {
	text = f.GetUsage()
	if f.TakesValue() {
		value = " VALUE"
		if f.TypeName() == "duration" {
			value = " DURATION"
		}
		if before, rest, ok := strings.Cut(text, "`"); ok {
			if word, after, ok := strings.Cut(rest, "`"); ok {
				value, text = " "+word, before+word+after
			}
		}
		if d := f.GetValue(); d != "" && d != "0s" && d != "0" && f.IsDefaultVisible() {
			text += fmt.Sprintf(" (default: %s)", d)
		}
	}
	if env := f.GetEnvVars(); len(env) > 0 {
		text += fmt.Sprintf(" [$%s]", strings.Join(env, ", $"))
	}
	return value, text
}

// section writes a section. Lines that follow each other are one paragraph, those that
// begin with a space stay as they are.
func section(b *strings.Builder, name, text string) {
	if text = strings.Trim(text, "\n"); text == "" {
		return
	}
	fmt.Fprintf(b, "%s\n", name)
	paragraph := ""
	flush := func() {
		if paragraph != "" {
			wrapped(b, paragraph, "   ")
			paragraph = ""
		}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if line != "" && !strings.HasPrefix(line, " ") {
			paragraph += line + " "
			continue
		}
		flush()
		fmt.Fprintln(b, strings.TrimRight("   "+line, " "))
	}
	flush()
	fmt.Fprint(b, "\n")
}

// wrapped writes text in lines that begin with indent.
func wrapped(b *strings.Builder, text, indent string) {
	line := indent
	for word := range strings.FieldsSeq(text) {
		if len(line)+len(word) >= width && line != indent {
			fmt.Fprintln(b, strings.TrimRight(line, " "))
			line = indent
		}
		line += word + " "
	}
	fmt.Fprintln(b, strings.TrimRight(line, " "))
}
