package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

// lastMoment is how long before the end of a lease the command is dead: a signal takes
// its time, and so does this process where the host is busy.
const lastMoment = time.Second

// runExample is what errors show.
const runExample = "sqllock run --name invoices -- php generateInvoices.php"

const runManual = `Runs COMMAND while it holds the lock NAME, and releases the lock when the command has ended. Started on many hosts at the same time, by cron for example, one runs the command; the others exit with 75 and a line that says who has the lock, or wait for it (--wait).

The command gets standard input, output and error as they are; sqllock itself prints nothing when all is well. Everything after -- is the command's, options included. The program is looked for before the lock is taken.

Without --ttl the lock ends with the session on the server: when sqllock ends, however it does, or loses its connection. A command that hangs keeps it. With --ttl the lock is a lease, of the table that sqllock migrate up makes: it ends after that time even where sqllock hangs, or its host is cut off. The two exclude each other.

Signals HUP, INT, QUIT, TERM, USR1, USR2, WINCH, TSTP and CONT go on to the command and to what it has started, which are a process group of their own; sqllock waits for the command to end. Before the command has been started, HUP, INT, QUIT and TERM end sqllock.

When the lock is lost, since the session on the server was ended or the server does not answer, the command gets SIGTERM, and SIGKILL after --grace. So it does, early enough to be dead in time, when the time of --ttl, or of --keep-alive, comes to its end. sqllock then exits with 79.

A command that ends leaves alone what it has started and left behind. One that is ended by a signal, or since its lock was lost, does not: what is left of its process group gets SIGTERM, and SIGKILL after --grace, and only then is the lock released.

If sqllock is killed by SIGKILL, the server frees the lock and, on Linux, the kernel kills the command: not what the command has started in turn, nor a program that changes its user, such as sudo. A shell script that ends in "exec php generateInvoices.php" is one process.

EXIT STATUS
  N      that of the command
  128+n  the command was ended by signal n; or sqllock was, before it had the lock
  64     the command line, a file or the environment is wrong
  69     the server can't be reached, or refuses; the command was not started
  75     another one holds the lock; 0 with --skip-ok
  79     the lock was lost, or its time was over; the command has been stopped
  126    the command can't be executed
  127    the command was not found

ENVIRONMENT
The command gets the environment of sqllock, and

  SQLLOCK_NAME   the name of the lock
  SQLLOCK_KEY    the name of the lock on the server, with the namespace
  SQLLOCK_TOKEN  with --ttl, a number that grows with every grant of the lock;
                 a store that remembers the greatest can refuse late writes

A DSN that was given by --dsn does not go to the command.

EXAMPLES
In a crontab, the same on every host. Nobody gets mail from those that find the lock taken; they exit with 0. Clocks of hosts differ, and the job may be short: the lock is kept for half a minute.

  SQLLOCK_DSN_FILE=/etc/billing/dsn
  0 2 * * *  sqllock run --name invoices --min-hold 30s --skip-ok --quiet -- php generateInvoices.php

A job that must not block the next one when it hangs, and is over after ten minutes in any case:

  sqllock run --name invoices --ttl 10m -- php generateInvoices.php

A job of up to six hours, which others can take over a minute after its host has died:

  sqllock run --name import --ttl 1m --keep-alive 6h -- ./import

A migration at the start of a container, one after the other:

  sqllock run --name migrate --wait 5m -- ./migrate up
`

func runCommand() *cli.Command {
	first := 1
	return &cli.Command{
		Name:        "run",
		Usage:       "run a command while a lock is held",
		UsageText:   "sqllock run --name NAME [OPTIONS] -- COMMAND [ARGUMENT...]",
		Description: runManual,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "the `NAME` of the lock"},
			&cli.DurationFlag{Name: "wait", Usage: "how long to wait for the lock, if another one holds it; without it sqllock does not wait"},
			&cli.DurationFlag{Name: "ttl", Usage: "make the lock a lease that ends after this time, which is the longest that the command can run, too, but for --keep-alive"},
			&cli.DurationFlag{Name: "keep-alive", Usage: "extend the lease while the command runs, for this time at the longest"},
			&cli.DurationFlag{Name: "min-hold", Usage: "hold the lock for this time at least, even if the command ends before; sqllock stays, too, unless a signal ends it"},
			&cli.DurationFlag{Name: "grace", Value: 10 * time.Second, Usage: "how long a command that is being stopped has, from SIGTERM to SIGKILL"},
			&cli.BoolFlag{Name: "skip-ok", Usage: "exit with 0 when another one holds the lock"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing when another one holds the lock"},
			&cli.BoolFlag{Name: "verbose", Usage: "print what happens to the lock"},
		},
		StopOnNthArg:    &first, // what follows is the command's, with -- before it or not
		HideHelpCommand: true,
		Action:          runAction,
	}
}

// A job is one run of a command.
type job struct {
	name                                 string
	wait, ttl, keepAlive, minHold, grace time.Duration
	skipOK, quiet, verbose               bool
	path                                 string // of the program
	argv                                 []string
	stderr                               io.Writer
}

func runAction(ctx context.Context, cmd *cli.Command) error {
	j, err := newJob(cmd)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 8)
	listen(signals, endingSignals()...)
	beforeUs := ctx // main has signals end it, which are the command's later
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	ready := make(chan struct{})
	watched := make(chan struct{})
	go func() { // until the command is started
		defer close(watched)
		var e *exitError
		select {
		case s := <-signals:
			e = ended(s)
		case <-beforeUs.Done():
			if !errors.As(context.Cause(beforeUs), &e) {
				e = &exitError{exitSignal, beforeUs.Err()}
			}
		case <-ready:
			return
		}
		cancel(&exitError{e.code, fmt.Errorf("%s: %w before the lock was held; the command was not started", j.name, e.err)})
	}()
	os.Args[0] = filepath.Base(j.path) // who asks for the holder is told of the command
	s, err := open(ctx, cmd, session.Process())
	if err != nil {
		return err
	}
	defer s.close()

	locker, opts := j.lock(s)
	pool := sqllock.NewPool(s.db, locker, sqllock.WithMaxConns(2)) // one to hold, one to wait or to ask
	lock, err := j.acquire(ctx, pool, opts)
	close(ready)
	<-watched
	if err == nil && ctx.Err() != nil {
		_ = lock.Release(ctx)
	}
	if ctx.Err() != nil {
		_ = pool.Close(ctx)
		return context.Cause(ctx)
	}
	if err != nil {
		return errors.Join(j.refused(ctx, s, locker, err), pool.Close(ctx))
	}
	return j.run(ctx, pool, lock, signals)
}

// newJob reads the command line.
func newJob(cmd *cli.Command) (*job, error) {
	j := &job{
		name: cmd.String("name"),
		wait: cmd.Duration("wait"), ttl: cmd.Duration("ttl"), keepAlive: cmd.Duration("keep-alive"),
		minHold: cmd.Duration("min-hold"), grace: cmd.Duration("grace"),
		skipOK: cmd.Bool("skip-ok"), quiet: cmd.Bool("quiet"), verbose: cmd.Bool("verbose"),
		argv: cmd.Args().Slice(), stderr: cmd.Root().ErrWriter,
	}
	for _, d := range []string{"wait", "ttl", "keep-alive", "min-hold", "grace"} {
		if v := cmd.Duration(d); v < 0 || v == 0 && cmd.IsSet(d) && (d == "ttl" || d == "keep-alive") {
			return nil, usage("--%s %s: it has to be more than nothing", d, v)
		}
	}
	switch {
	case !cmd.IsSet("name"):
		return nil, usage("run needs the name of a lock, as in: %s", runExample)
	case j.name == "":
		return nil, usage("--name is empty: is a variable not set?")
	case len(j.argv) == 0:
		return nil, usage("run needs a command, after --, as in: %s", runExample)
	}
	if err := j.plan(); err != nil {
		return nil, err
	}
	err := j.find()
	return j, err
}

// plan checks that the times fit together.
func (j *job) plan() error {
	stop := j.grace + lastMoment
	switch {
	case j.keepAlive != 0 && j.ttl == 0:
		return usage("--keep-alive extends a lease, so it needs --ttl, as in: --ttl 1m --keep-alive 6h")
	case j.ttl != 0 && j.keepAlive == 0 && j.ttl <= stop:
		return usage("--ttl %s leaves the command no time: it is told to stop --grace (%s) before it has to be dead, a second before the lease ends; "+
			"make --ttl longer than %s, or --grace shorter", j.ttl, j.grace, stop)
	case j.keepAlive != 0 && j.ttl < 3*stop:
		return usage("--ttl %s is too short to be kept alive: an extension that fails has to be tried again before the command is told to stop, --grace (%s) "+
			"and a second before the lease ends; make --ttl %s or more, or --grace shorter", j.ttl, j.grace, 3*stop)
	case j.keepAlive != 0 && j.keepAlive <= j.ttl:
		return usage("--keep-alive %s is the longest that the lock is held, so it has to be longer than --ttl %s", j.keepAlive, j.ttl)
	case j.ttl != 0 && j.minHold > max(j.ttl, j.keepAlive):
		return usage("--min-hold %s is longer than the lock can be held; make --ttl %s or more", j.minHold, j.minHold)
	}
	return nil
}

// find looks the program up, before anybody is kept waiting for it.
func (j *job) find() error {
	path, err := exec.LookPath(j.argv[0])
	switch {
	case err == nil:
		j.path = path
		return nil
	case errors.Is(err, exec.ErrDot):
		return &exitError{exitNotFound, fmt.Errorf("%s is in the current folder, not in the PATH; write ./%[1]s", j.argv[0])}
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		text := "is not in the PATH"
		if strings.ContainsRune(j.argv[0], os.PathSeparator) {
			text = "does not exist"
		}
		if strings.ContainsAny(j.argv[0], " \t") {
			text += "; a whole command line is run by: sh -c '...'"
		}
		return &exitError{exitNotFound, fmt.Errorf("the command %q %s", j.argv[0], text)}
	}
	var e *exec.Error
	if errors.As(err, &e) {
		err = e.Err
	}
	return &exitError{exitNotRunnable, fmt.Errorf("the command %q can't be executed: %w", j.argv[0], err)}
}

// lock returns what makes the lock.
func (j *job) lock(s *server) (*sqllock.Locker, []sqllock.LockOption) {
	var of []sqllock.Option
	if j.verbose {
		of = append(of, sqllock.WithObserver(j.tell))
	}
	var opts []sqllock.LockOption
	if j.minHold > 0 {
		opts = append(opts, sqllock.AtLeast(j.minHold))
	}
	if j.ttl == 0 {
		return s.locker(s.sessions, of...), opts
	}
	opts = append(opts, sqllock.TTL(j.ttl))
	if j.keepAlive > 0 {
		opts = append(opts, sqllock.KeepAlive(j.keepAlive))
	}
	return s.locker(s.leases, of...), opts
}

func (j *job) acquire(ctx context.Context, pool *sqllock.Pool, opts []sqllock.LockOption) (*sqllock.Lock, error) {
	if j.wait == 0 {
		return pool.TryLock(ctx, j.name, opts...)
	}
	ctx, cancel := context.WithTimeout(ctx, j.wait)
	defer cancel()
	return pool.Lock(ctx, j.name, opts...)
}

// refused makes the error for a lock that was not to be had.
func (j *job) refused(ctx context.Context, s *server, locker *sqllock.Locker, err error) error {
	if !errors.Is(err, sqllock.ErrBusy) {
		return err
	}
	code := exitBusy
	if j.skipOK {
		code = 0
	}
	if j.quiet && j.wait == 0 { // then the server has just said that it is busy
		return &exitError{code: code}
	}
	var text strings.Builder
	text.WriteString(j.name)
	if j.wait > 0 {
		fmt.Fprintf(&text, ": after %s of waiting", j.wait)
	}
	short, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	h, asked := locker.Holder(short, s.db, j.name)
	switch {
	case j.wait > 0 && errors.Is(asked, context.DeadlineExceeded) && ctx.Err() == nil:
		return &exitError{exitUnavailable, fmt.Errorf("%s the server does not answer; the command was not started", &text)}
	case j.quiet:
		return &exitError{code: code}
	}
	switch {
	case errors.Is(asked, sqllock.ErrNotHeld):
		text.WriteString(": another one held the lock, and has just released it")
	case asked != nil:
		text.WriteString(": another one holds the lock")
	default:
		fmt.Fprintf(&text, ": the lock is held by %s", person(h))
	}
	if errors.Is(err, sqllock.ErrHolderAlive) {
		text.WriteString("; its time is over, and its session has been told to end")
	}
	return &exitError{code, errors.New(text.String())}
}

// person tells of a holder what there is to tell.
func person(h sqllock.Holder) string {
	who := h.Process
	if who == "" {
		who = "another one"
	}
	who += fmt.Sprintf(", session %d", h.Session)
	if h.User != "" {
		who += " of " + h.User
		if h.Host != "" {
			who += "@" + h.Host
		}
	}
	if h.Expires.IsZero() { // then Since is no more than when the session was last heard of
		return who
	}
	who += ", since " + h.Since.Format("2006-01-02 15:04:05")
	if h.TimeLeft > 0 {
		return who + fmt.Sprintf(", for another %s unless it is extended", h.TimeLeft.Round(time.Second))
	}
	return who + ", its time is over"
}

// tell prints an event.
func (j *job) tell(e sqllock.Event) {
	var text string
	switch e.Kind {
	case sqllock.Acquired:
		text = "acquired"
		if e.Token != 0 {
			text += fmt.Sprintf(", token %d", e.Token)
		}
		if e.Waited >= time.Second {
			text += fmt.Sprintf(", after %s", e.Waited.Round(time.Millisecond))
		}
	case sqllock.Released, sqllock.Lost, sqllock.Expired:
		text = fmt.Sprintf("%s after %s", e.Kind, e.Held.Round(time.Millisecond))
	case sqllock.TakenOver:
		text = "taken over what was left by " + person(e.Holder)
	case sqllock.Killed:
		text = "ended the session of " + person(e.Holder)
	case sqllock.Busy:
		return // it is told below
	default:
		text = string(e.Kind)
	}
	if e.Err != nil {
		text += ": " + strings.ReplaceAll(e.Err.Error(), "sqllock: ", "")
	}
	j.say(text)
}

func (j *job) say(text string) {
	fmt.Fprintf(j.stderr, "sqllock: %s\n", oneLine(j.name+": "+text))
}

// environ is the environment of the command.
func (j *job) environ(lock *sqllock.Lock) []string {
	env := []string{"SQLLOCK_NAME=" + j.name, "SQLLOCK_KEY=" + lock.Grant().Key}
	if token := lock.Token(); token != 0 {
		env = append(env, fmt.Sprintf("SQLLOCK_TOKEN=%d", token))
	}
	for _, v := range os.Environ() {
		switch key, _, _ := strings.Cut(v, "="); key {
		case "SQLLOCK_NAME", "SQLLOCK_KEY", "SQLLOCK_TOKEN": // of a run around this one
		default:
			env = append(env, v)
		}
	}
	return env
}

// run runs the command under lock, and releases it.
func (j *job) run(ctx context.Context, pool *sqllock.Pool, lock *sqllock.Lock, signals chan os.Signal) error {
	listen(signals, passedSignals()...)
	c, err := start(j.path, j.argv, j.environ(lock))
	if err != nil {
		_ = pool.Close(canceled(ctx)) // at once, whatever --min-hold says: nothing has run
		return notStarted(j.argv[0], err)
	}
	code, why := j.supervise(ctx, c, lock, signals)
	if why == nil {
		why = j.release(ctx, pool, lock, signals)
	} else {
		_ = lock.Release(ctx) // unless it is lost
		_ = pool.Close(canceled(ctx))
	}
	if why != nil {
		return &exitError{exitLost, fmt.Errorf("%s: %w", j.name, why)}
	}
	return &exitError{code: code}
}

// notStarted tells why the kernel refused to start a program that is there.
func notStarted(program string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &exitError{exitNotFound, fmt.Errorf("the command %q can't be started: the program that its first line (#!) names does not exist", program)}
	}
	text := ""
	if strings.Contains(err.Error(), "exec format") {
		text = "; a script begins with a line such as #!/bin/sh"
	}
	return &exitError{exitNotRunnable, fmt.Errorf("the command %q can't be executed: %w%s", program, err, text)}
}

func canceled(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

// errStopped is why a command was stopped while the lock was held.
func (j *job) errStopped() error {
	if j.keepAlive > 0 {
		return fmt.Errorf("the command was stopped, since the lease was ending: --keep-alive %s was over, or the lease could not be extended", j.keepAlive)
	}
	return fmt.Errorf("the command was stopped, since the lease was ending: --ttl %s was over", j.ttl)
}

// supervise returns the exit code of the command when it has ended, and why it was
// stopped if it was.
func (j *job) supervise(ctx context.Context, c *child, lock *sqllock.Lock, signals <-chan os.Signal) (code int, why error) {
	lost := lock.Done()
	end := time.NewTimer(untilStop(lock, j.grace))
	defer end.Stop()
	kill := time.NewTimer(math.MaxInt64)
	defer kill.Stop()
	var last time.Time // when it is killed
	continued := make(chan os.Signal, 1)
	listen(continued, continuing()...)
	// gone asks before a command that was stopped goes on: then Done is closed, too.
	gone := func() bool { return errors.Is(lock.Check(ctx), sqllock.ErrLost) }
	stop := func(err error) {
		if why == nil {
			why, last = err, time.Now().Add(j.graceLeft(lock))
			c.stop()
			kill.Reset(time.Until(last))
		}
	}
	for {
		select {
		case s := <-signals:
			if why == nil { // it is being stopped already
				c.pass(s)
			}
		case <-continued:
			if why == nil && !gone() {
				c.resume()
			}
		case <-lost:
			lost = nil
			stop(fmt.Errorf("the command was stopped, since %w", reason(lock.Err())))
		case <-end.C:
			if left := untilStop(lock, j.grace); left > 0 { // it has been extended
				end.Reset(left)
				continue
			}
			if lost != nil {
				stop(j.errStopped())
			}
		case <-kill.C:
			c.kill()
		case sig := <-c.stops:
			if !c.suspend(sig, continued) {
				continue
			}
			if !gone() {
				c.resume()
			}
		case code := <-c.ended:
			if why == nil && c.signaled {
				last = time.Now().Add(j.graceLeft(lock))
				c.stop()
			}
			if why != nil || c.signaled {
				clearGroup(c, last)
			}
			return code, why
		}
	}
}

// reason is why an operation on a lock failed, without which and on which.
func reason(err error) error {
	var op *sqllock.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// untilStop is when the command has to be stopped for it to be dead when the lease ends.
func untilStop(lock *sqllock.Lock, grace time.Duration) time.Duration {
	return lock.Remaining() - lastMoment - grace
}

// graceLeft is for how long a command that is told to stop may go on: for --grace, but
// not beyond the end of its lease, were it lost or not.
func (j *job) graceLeft(lock *sqllock.Lock) time.Duration {
	if until := lock.Grant().Until; !until.IsZero() {
		return max(min(j.grace, time.Until(until)-lastMoment), 0)
	}
	return j.grace
}

// clearGroup waits until nothing is left of the process group of a command that has
// ended, and kills what is left at last.
func clearGroup(c *child, last time.Time) {
	killed := false
	for ; c.left(); time.Sleep(5 * time.Millisecond) {
		switch {
		case time.Now().Before(last):
		case !killed:
			c.kill()
			killed, last = true, time.Now().Add(lastMoment/2)
		default: // dead, but nobody reaps them: a container without an init
			return
		}
	}
}

// release releases the lock after the command, not before --min-hold is over or a
// signal comes. It returns an error if the lock may not have been held to the end.
func (j *job) release(ctx context.Context, pool *sqllock.Pool, lock *sqllock.Lock, signals <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if j.minHold > 0 { // then Release asks nobody
		if err := lock.Check(ctx); errors.Is(err, sqllock.ErrLost) {
			_ = pool.Close(ctx)
			return fmt.Errorf("the command has ended, but before that %w", reason(err))
		}
	}
	err := lock.Release(ctx)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = pool.Close(ctx) // a lock that is lost after its command has ended harms nobody who comes on time
	}()
	for {
		select {
		case <-closed:
			if err != nil {
				return fmt.Errorf("the command has ended, but perhaps not under the lock: %w", reason(err))
			}
			return nil
		case s := <-signals:
			if slices.Contains(endingSignals(), s) {
				cancel()
			}
		}
	}
}
