package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/sqllock/go-sqllock/sqllock"
)

const servers = 5

// patience bounds what the director waits for. All of it takes seconds.
const patience = time.Minute

func demo(ctx context.Context, dsn string, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_ = mysql.SetLogger(&mysql.NopLogger{})
	if info, err := os.Stdout.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 || os.Getenv("NO_COLOR") != "" {
		text.DisableColors()
	}
	p, err := findPlace(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.cleaning()) }()
	db, err := open(p.dsn)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // the process ends
	fmt.Fprintf(out, "Database: %s\n", p.what)
	if p.inMemory {
		fmt.Fprintln(out, "(It drops some of the rows that several web servers insert at one time, so without the lock it shows\n fewer duplicates than there were. A real server keeps them.)")
	}

	d := &director{out: out, db: db, dsn: p.dsn, events: make(chan event)}
	locked, err := d.play(ctx, true)
	if err != nil {
		return err
	}
	unlocked, err := d.play(ctx, false)
	if err != nil {
		return err
	}
	if locked.duplicates != 0 || locked.missing != 0 {
		return fmt.Errorf("with the lock there are %d duplicates and %d missing invoices, want none", locked.duplicates, locked.missing)
	}
	if unlocked.duplicates == 0 {
		return errors.New("without the lock there are no duplicates, so the demo shows nothing")
	}
	fmt.Fprintf(out, "\nWith the lock: %d invoices, %d duplicates. Without: %d duplicates.\n", locked.invoices, locked.duplicates, unlocked.duplicates)
	return nil
}

// director runs the web servers and tells what they do.
type director struct {
	out    io.Writer
	db     *sql.DB
	dsn    string
	table  string
	events chan event
	fleet  []*process
	stats  map[string]*stat
	start  time.Time
}

// process is a web server that runs.
type process struct {
	name  string
	cmd   *exec.Cmd
	fire  io.WriteCloser
	ended chan struct{}
}

type stat struct{ runs, skips, takeovers, killed int }

type result struct{ invoices, duplicates, missing int }

func (d *director) say(color text.Color, format string, args ...any) {
	fmt.Fprintf(d.out, "%6.3fs  %s\n", time.Since(d.start).Seconds(), color.Sprintf(format, args...))
}

// play plays both acts, with the lock or without, and returns what came of it.
func (d *director) play(ctx context.Context, locked bool) (r result, err error) {
	d.table = ownName()
	if _, err := d.db.ExecContext(ctx, "CREATE TABLE "+d.table+" (month VARCHAR(10), customer INT, made_by VARCHAR(10))"); err != nil {
		return result{}, err
	}
	defer func() {
		_, dropped := d.db.ExecContext(context.WithoutCancel(ctx), "DROP TABLE "+d.table)
		err = errors.Join(err, dropped)
	}()
	d.fleet, d.stats = nil, make(map[string]*stat)
	title := "WITH THE LOCK"
	if !locked {
		title = "WITHOUT THE LOCK"
	}
	fmt.Fprintf(d.out, "\n%s: %d web servers, each fires the monthly invoice job for %d customers\n", text.Bold.Sprint(title), servers, customers)
	defer d.stopAll()
	for i := range servers {
		if err := d.run(ctx, fmt.Sprintf("web%d", i+1)); err != nil {
			return result{}, err
		}
	}
	for range servers {
		select {
		case <-d.events: // ready
		case <-ctx.Done():
			return result{}, fmt.Errorf("the web servers did not start: %w", context.Cause(ctx))
		}
	}
	d.start = time.Now()
	if err := d.firing(ctx, firing{"October", locked}, nil); err != nil {
		return result{}, err
	}
	if locked {
		if err := d.takeover(ctx); err != nil {
			return result{}, err
		}
	}
	return d.count(ctx, locked)
}

// run starts a web server, which reports until it ends.
func (d *director) run(ctx context.Context, name string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), nameEnv+"="+name, dsnEnv+"="+d.dsn, tableEnv+"="+d.table)
	cmd.Stderr = os.Stderr
	fire, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	reports, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p := &process{name: name, cmd: cmd, fire: fire, ended: make(chan struct{})}
	d.fleet = append(d.fleet, p)
	if d.stats[name] == nil {
		d.stats[name] = &stat{}
	}
	go func() {
		defer close(p.ended)
		for events := json.NewDecoder(reports); ; {
			var e event
			if events.Decode(&e) != nil {
				break
			}
			select {
			case d.events <- e:
			case <-ctx.Done():
			}
		}
		_ = cmd.Wait() // it was killed, or its input has ended
	}()
	return nil
}

func (d *director) stopAll() {
	for _, p := range d.fleet {
		_ = p.fire.Close()
		<-p.ended
	}
}

// fire sends a firing to every web server at one moment.
func (d *director) fire(f firing) error {
	var wg sync.WaitGroup
	errs := make([]error, len(d.fleet))
	for i, p := range d.fleet {
		wg.Go(func() { errs[i] = json.NewEncoder(p.fire).Encode(f) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// firing fires, tells what happens, and returns when every web server is through
// with it. The holder is given to onHalf when half of its work is done; if that
// returns true, nothing more is expected of the holder.
func (d *director) firing(ctx context.Context, f firing, onHalf func(holder string) (bool, error)) error {
	d.say(text.FgHiWhite, "── %s: the job fires on every web server", f.Month)
	if err := d.fire(f); err != nil {
		return err
	}
	for open := len(d.fleet); open > 0; {
		var e event
		select {
		case e = <-d.events:
		case <-ctx.Done():
			return fmt.Errorf("the web servers did not finish: %w", context.Cause(ctx))
		}
		ms := float64(e.Took.Microseconds()) / 1000
		switch e.What {
		case got:
			d.stats[e.Server].runs++
			if f.Locked {
				d.say(text.FgGreen, "%s  asked, and got the lock (%.1f ms after the firing)", e.Server, ms)
			} else {
				d.say(text.FgYellow, "%s  runs", e.Server)
			}
		case skipped:
			open--
			d.stats[e.Server].skips++
			d.say(text.FgHiBlack, "%s  asked, and skips: another one has the lock (%.1f ms)", e.Server, ms)
		case made:
			if f.Locked && e.Made%5 == 0 {
				d.say(text.FgGreen, "%s  has made %d invoices", e.Server, e.Made)
			}
			if onHalf != nil && e.Made == customers/2 {
				gone, err := onHalf(e.Server)
				if err != nil {
					return err
				}
				if gone {
					open--
				}
			}
		case done:
			open--
			d.say(text.FgGreen, "%s  is done: %d invoices", e.Server, e.Made)
		case failed:
			return fmt.Errorf("%s: %s", e.Server, e.Text)
		}
	}
	return nil
}

// takeover has the holder killed half-way, and fires again as soon as the
// server has freed the lock.
func (d *director) takeover(ctx context.Context) error {
	locker := newLocker(d.dsn)
	var freed time.Duration
	err := d.firing(ctx, firing{"November", true}, func(holder string) (bool, error) {
		if err := d.kill(holder); err != nil {
			return false, err
		}
		killed := time.Now()
		for {
			_, err := locker.Holder(ctx, d.db, "invoices")
			if errors.Is(err, sqllock.ErrNotHeld) {
				freed = time.Since(killed)
				return true, nil
			}
			if err != nil {
				return false, err
			}
		}
	})
	if err != nil {
		return err
	}
	d.say(text.FgHiWhite, "   the server freed the lock %.1f ms after the kill", float64(freed.Microseconds())/1000)
	before := make(map[string]int)
	for name, s := range d.stats {
		before[name] = s.runs
	}
	if err := d.firing(ctx, firing{"November", true}, nil); err != nil {
		return err
	}
	for name, s := range d.stats {
		if s.runs > before[name] {
			s.takeovers++
			d.say(text.FgHiWhite, "   %s took over where the killed one had stopped", name)
			break
		}
	}
	return nil
}

// kill ends a web server by SIGKILL, and returns when it is gone.
func (d *director) kill(name string) error {
	for i, p := range d.fleet {
		if p.name != name {
			continue
		}
		d.say(text.FgHiRed, "%s  is killed with kill -9, half-way (process %d)", name, p.cmd.Process.Pid)
		d.stats[name].killed++
		d.fleet = append(d.fleet[:i:i], d.fleet[i+1:]...)
		if err := p.cmd.Process.Kill(); err != nil {
			return err
		}
		// What it had reported before is read, so that it can end.
		for {
			select {
			case <-d.events:
			case <-p.ended:
				_ = p.fire.Close()
				return nil
			}
		}
	}
	return fmt.Errorf("no web server %q", name)
}

// count counts in the database, and prints a table.
func (d *director) count(ctx context.Context, locked bool) (result, error) {
	t := table.NewWriter()
	t.SetOutputMirror(d.out)
	t.SetStyle(table.StyleRounded)
	right := []table.ColumnConfig{{Number: 5, AlignFooter: text.AlignRight}, {Number: 6, AlignFooter: text.AlignRight, AlignHeader: text.AlignRight}}
	t.SetColumnConfigs(right)
	t.AppendHeader(table.Row{"web server", "runs", "skips", "takeovers", "invoices made", "duplicates"})
	var r result
	var sum stat
	months := 1
	if locked {
		months = 2
	}
	var distinct int
	err := d.db.QueryRowContext(ctx, "SELECT COUNT(*), COUNT(DISTINCT CONCAT(month, ' ', customer)) FROM "+d.table).Scan(&r.invoices, &distinct)
	if err != nil {
		return r, err
	}
	r.duplicates, r.missing = r.invoices-distinct, months*customers-distinct
	for i := range servers {
		name := fmt.Sprintf("web%d", i+1)
		s := d.stats[name]
		var n int
		if err := d.db.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+d.table+" WHERE made_by = '"+name+"'").Scan(&n); err != nil {
			return r, err
		}
		label := name
		if s.killed > 0 {
			label += " (killed)"
		}
		t.AppendRow(table.Row{label, s.runs, s.skips, s.takeovers, n, ""})
		sum.runs, sum.skips, sum.takeovers = sum.runs+s.runs, sum.skips+s.skips, sum.takeovers+s.takeovers
	}
	t.AppendFooter(table.Row{"", sum.runs, sum.skips, sum.takeovers, fmt.Sprintf("%d of %d", r.invoices, months*customers), r.duplicates})
	t.Render()
	return r, nil
}
