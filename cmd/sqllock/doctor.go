package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "tell what works on this server, what does not, and what to do",
		Description: "It looks at the server, and acquires and releases a lock of its own with each backend over two sessions. It makes\n" +
			"no table, repairs nothing, and ends nobody. The exit code is 0 if at least one backend works, and 1 otherwise.",
		Flags:        []cli.Flag{jsonFlag()},
		OnUsageError: onUsageError,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := noArgs(cmd); err != nil {
				return err
			}
			s, err := open(ctx, cmd, "sqllock doctor")
			if err != nil {
				return err
			}
			defer s.close()
			d := &doctor{server: s, table: cmd.String("table")}
			return d.report(cmd, d.look(ctx), d.backends(ctx))
		},
	}
}

// How bad what a check has found is.
const (
	fine    = "ok"
	info    = "info"
	warning = "warning" // something may go wrong at some time
	problem = "problem" // something does not work
)

// check is what was looked at, what was found, and what to do about it.
type check struct {
	Check string `json:"check"`
	Level string `json:"level"`
	Found string `json:"found"`
	Do    string `json:"do"`
}

// verdict is about one backend.
type verdict struct {
	Backend string `json:"backend"`
	Works   bool   `json:"works"`
	Why     string `json:"why_not"` // and what to do
}

// doctor looks at a server.
type doctor struct {
	*server
	table  string
	gtid   bool // enforce_gtid_consistency
	checks []check
}

func (d *doctor) add(name, level, found, do string) {
	d.checks = append(d.checks, check{name, level, found, do})
}

// failed notes that a check could not be made.
func (d *doctor) failed(name string, err error) {
	d.add(name, info, "can't be seen: "+short(err), "")
}

// look makes the checks. One that fails keeps no other from being made.
func (d *doctor) look(ctx context.Context) []check {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	if d.mysql != nil {
		d.lookMySQL(ctx)
	} else {
		d.lookPostgres(ctx)
	}
	d.clock(ctx)
	d.tables(ctx)
	return d.checks
}

func (d *doctor) report(cmd *cli.Command, checks []check, verdicts []verdict) error {
	works := false
	for _, v := range verdicts {
		works = works || v.Works
	}
	w := cmd.Root().Writer
	if cmd.Bool("json") {
		if err := printJSON(w, map[string]any{"server": d.String(), "works": works, "checks": checks, "backends": verdicts}); err != nil {
			return err
		}
	} else if err := printReport(cmd, checks, verdicts); err != nil {
		return err
	}
	if !works {
		return &exitError{code: exitNo}
	}
	return nil
}

func printReport(cmd *cli.Command, checks []check, verdicts []verdict) error {
	w := cmd.Root().Writer
	rows := make([][]string, len(checks))
	for i, c := range checks {
		text := c.Found
		if c.Do != "" {
			text += "; " + c.Do
		}
		rows[i] = []string{c.Level, c.Check, text}
	}
	if err := printTable(w, nil, rows); err != nil {
		return err
	}
	fmt.Fprintln(w)
	rows = make([][]string, len(verdicts))
	for i, v := range verdicts {
		works := "yes"
		if !v.Works {
			works = "no"
		}
		rows[i] = []string{v.Backend, works, v.Why}
	}
	return printTable(w, []string{"BACKEND", "WORKS", "WHY NOT, AND WHAT TO DO"}, rows)
}

// probe is a backend as doctor and bench try it: the one for leases has no pool, over which
// it would repair a table that is damaged.
type probe struct {
	name string
	sqllock.Backend
}

func (s *server) probes(tableName string) []probe {
	if s.mysql != nil {
		return []probe{{"mysqlnamed", mysqlnamed.New()}, {"table", table.New(defaultTTL, table.WithTable(tableName))}}
	}
	return []probe{{"pgadvisory", pgadvisory.New()}, {"pgtable", pgtable.New(defaultTTL, pgtable.WithTable(tableName))}}
}

// ownName is a name that nobody else has.
func ownName(what string) string { return "go-sqllock:" + what + " " + rand.Text() }

// backends tries each of them.
func (d *doctor) backends(ctx context.Context) (all []verdict) {
	for _, p := range d.probes(d.table) {
		all = append(all, judge(p.name, d.try(ctx, p)))
		if p.name == "pgadvisory" {
			all = append(all, judge("pgadvisory (LockTx)", d.tryTx(ctx, p)))
		}
	}
	return all
}

func judge(backend string, err error) verdict {
	if err != nil {
		return verdict{backend, false, short(advise(err))}
	}
	return verdict{backend, true, ""}
}

// tryTime is how long a backend is tried, and lookTime how long all checks take at most.
const (
	tryTime  = 20 * time.Second
	lookTime = 30 * time.Second
)

// try has two sessions take turns. What it acquires it releases, or it ends with the
// session.
func (d *doctor) try(ctx context.Context, p probe) error {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	one, err := d.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("no connection: %w", err)
	}
	defer one.Close() //nolint:errcheck // nothing is left on it
	two, err := d.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("no second connection: %w", err)
	}
	defer two.Close() //nolint:errcheck // nothing is left on it

	k, name := sqllock.New(p.Backend), ownName("doctor")
	lock, err := k.TryLock(ctx, one, name)
	if err != nil {
		return cause(err)
	}
	defer lock.Release(context.WithoutCancel(ctx)) //nolint:errcheck // the second release of two says so
	if another, err := k.TryLock(ctx, two, name); !errors.Is(err, sqllock.ErrBusy) {
		if err != nil {
			return cause(err)
		}
		_ = another.Release(ctx)
		return errors.New("two sessions were granted one lock: is a proxy between, or a cluster?")
	}
	if err := lock.Check(ctx); err != nil {
		return cause(err)
	}
	_, leases := p.Backend.(sqllock.Leaser)
	if leases {
		if err := lock.Extend(ctx, defaultTTL); err != nil {
			return cause(err)
		}
	}
	if err := lock.Release(ctx); err != nil {
		return cause(err)
	}
	next, err := k.TryLock(ctx, two, name)
	if err != nil {
		return cause(err)
	}
	if leases && next.Token() <= lock.Token() {
		err = fmt.Errorf("fencing tokens do not grow: %d came after %d", next.Token(), lock.Token())
	}
	return errors.Join(err, next.Release(ctx))
}

// tryTx is try for locks of transactions.
func (d *doctor) tryTx(ctx context.Context, p probe) error {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	one, err := d.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer one.Rollback() //nolint:errcheck // nothing is done in it
	two, err := d.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer two.Rollback() //nolint:errcheck // nothing is done in it
	k, name := sqllock.New(p.Backend), ownName("doctor")
	if err := k.TryLockTx(ctx, one, name); err != nil {
		return cause(err)
	}
	switch err := k.TryLockTx(ctx, two, name); {
	case err == nil:
		return errors.New("two transactions were granted one lock")
	case !errors.Is(err, sqllock.ErrBusy):
		return cause(err)
	}
	return nil
}

// cause is an error without the operation and the name, which are nobody's.
func cause(err error) error {
	var op *sqllock.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// clock compares that of the server with ours.
func (d *doctor) clock(ctx context.Context) {
	query := "SELECT (extract(epoch FROM clock_timestamp())*1000000)::bigint"
	if d.mysql != nil {
		query = "SELECT UNIX_TIMESTAMP()*1000000+MICROSECOND(NOW(6))"
	}
	var micros int64
	sent := time.Now()
	if err := d.ask(ctx, d.db, query, &micros); err != nil {
		d.failed("clock", err)
		return
	}
	d.checks = append(d.checks, clockCheck(time.UnixMicro(micros).Sub(sent), time.Since(sent)))
}

// clockCheck is given how far ahead the server is of the moment when it was asked, and how
// long it took to answer.
func clockCheck(ahead, took time.Duration) check {
	off := ahead - took/2
	if off.Abs() <= took/2+time.Second {
		return check{"clock", fine, "agrees with ours to within a second", ""}
	}
	side := "ahead of"
	if off < 0 {
		side = "behind"
	}
	return check{"clock", info, fmt.Sprintf("%v %s ours; locks go by that of the server, so that is no harm to them", off.Abs().Round(100*time.Millisecond), side), ""}
}

// tables looks at what migrations make.
func (d *doctor) tables(ctx context.Context) {
	if strings.Contains(d.table, ".") {
		d.add("table", info, d.table+" is in another schema than that of the DSN: its version is not looked at", "")
		return
	}
	opts := d.migrate
	if st, err := d.tableState(ctx, d.table, opts); err != nil {
		d.failed("table", err)
	} else {
		d.checks = append(d.checks, tableCheck(st))
		if st.Exists && d.mysql != nil {
			d.damage(ctx)
		}
		if d.mysql != nil {
			d.checks = append(d.checks, engineCheck(st.Engine, d.gtid))
		}
	}
	fences, fenceOpts := "lock_fences", []migrations.Option{migrations.Fences()}
	if d.postgres != nil {
		fenceOpts = append(fenceOpts, migrations.Postgres())
	}
	if st, err := d.tableState(ctx, fences, fenceOpts); err != nil {
		d.failed("fence table", err)
	} else {
		d.checks = append(d.checks, fenceCheck(st))
	}
}

func tableCheck(st *tableState) check {
	switch {
	case !st.Exists:
		return check{"table", info, st.say(), "where leases are wanted: sqllock migrate up"}
	case st.Hidden:
		return check{"table", info, st.say() + "; its version " + st.versions(), ""}
	case st.Needed:
		return check{"table", warning, st.say() + ", version " + st.versions(), "sqllock migrate up"}
	}
	return check{"table", fine, st.say() + ", version " + st.versions(), ""}
}

func fenceCheck(st *tableState) check {
	switch {
	case !st.Exists:
		return check{"fence table", info, "there is no table " + st.Table, "only the fenced form of txguard needs it: sqllock migrate --fences up"}
	case st.Needed:
		return check{"fence table", warning, st.Table + ", version " + st.versions(), "sqllock migrate --fences up"}
	}
	return check{"fence table", fine, st.Table + ", version " + st.versions(), ""}
}

// connections says how many there may be, and are.
func connections(most, used int64) check {
	found := fmt.Sprintf("%d of %d are in use", used, most)
	if most-used < max(most/10, 3) {
		return check{"connections", warning, found, "a lock, or a wait, takes one each: raise max_connections, or use a Pool"}
	}
	return check{"connections", fine, found, ""}
}

// code is the number or the SQLSTATE of an error of the server, "" if it is none.
func code(err error) string {
	var m *mysql.MySQLError
	if errors.As(err, &m) {
		return fmt.Sprint(m.Number)
	}
	var p *pgconn.PgError
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}
