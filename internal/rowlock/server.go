package rowlock

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

// on is a session while nothing else runs on it. One of my and pg is nil.
type on struct {
	b  *Backend
	q  *queries
	my *session.Session
	pg *pgsession.Session
	dc any // the driver's connection, which tells sessions apart

	wrote bool // a statement that changes rows, as far as is known
}

// use calls f with the session under conn.
func (b *Backend) use(conn *sql.Conn, f func(*on) error) error {
	isPG := false
	var dc any
	err := session.Use(conn, func(s *session.Session) error {
		dc, isPG = s.Driver(), pgsession.Is(s.Driver())
		if isPG {
			return nil
		}
		return f(&on{b: b, q: b.mysql, my: s, dc: dc})
	})
	if isPG {
		err = pgsession.Use(conn, func(s *pgsession.Session) error { return f(&on{b: b, q: b.postgres, pg: s, dc: dc}) })
	}
	if errors.Is(err, sql.ErrConnDone) { // to the core that means that the lock is gone with its session
		return errConnClosed
	}
	return err
}

// errConnClosed is that there is no session to speak of any more.
var errConnClosed = fmt.Errorf("%w: the conn was closed", sqllock.ErrSessionGone)

// inside reports whether the session is in a transaction, or a statement would begin one.
// The driver has that of the last answer; it is asked for again where it may be old.
func (o *on) inside(ctx context.Context) (bool, error) {
	if o.pg != nil {
		return o.pg.Tx() != pgsession.Idle, nil
	}
	st, known := userlock.Known(o.my)
	if known && !st.Open && st.Autocommit {
		return false, nil
	}
	st, err := userlock.Refresh(ctx, o.my)
	return st.Open || !st.Autocommit, err
}

// occupied reports whether rows of a query are open on the session, or, on MySQL, its
// connection is broken.
func (o *on) occupied() bool {
	if o.pg != nil {
		return o.pg.Busy()
	}
	return o.my.Idle() != nil
}

// run runs statements in transactions of their own, and scans the row of the only one that
// is a SELECT. Others who write the row at the same moment may bring about a deadlock, which
// undoes one statement of ours, or on PostgreSQL all of them: they are run again.
func (o *on) run(ctx context.Context, dest []sql.Scanner, statements ...string) error {
	for try := 1; ; try++ {
		err := o.runOnce(ctx, dest, statements)
		if !undone(err) || try == runTries {
			return err
		}
	}
}

const runTries = 5

func (o *on) runOnce(ctx context.Context, dest []sql.Scanner, statements []string) error {
	if o.pg != nil {
		err := o.pg.Apart(strings.Join(statements, ";"), dest...)
		o.wrote = err == nil || errors.Is(err, sqllock.ErrSessionGone) && !pgsession.NotSent(err)
		return o.q.explain(err)
	}
	if len(statements) == 1 && isSelect(statements[0]) {
		return o.q.explain(userlock.Ask(ctx, o.my, statements[0], dest...))
	}
	return o.q.explain(o.limited(ctx, func() error {
		for _, s := range statements {
			var err error
			if isSelect(s) {
				err = userlock.Ask(ctx, o.my, s, dest...)
			} else {
				_, err = userlock.Exec(ctx, o.my, s)
				o.wrote = o.wrote || err == nil || errors.Is(err, sqllock.ErrSessionGone) && !userlock.NotSent(err)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}))
}

func isSelect(statement string) bool { return strings.HasPrefix(statement, "SELECT") }

// rowTime is how long a statement of MySQL waits for a row or the table that somebody else
// has locked, in seconds: less than the time that its answer may take, whose end costs the
// session. On PostgreSQL it is pgsession.RowTime.
const rowTime = "4"

// limited runs f with rowTime as the session's limit on waits.
func (o *on) limited(ctx context.Context, f func() error) error {
	limit := func(name string) string {
		return "SESSION " + name + "=CAST(LEAST(@@SESSION." + name + "," + rowTime + ") AS UNSIGNED)"
	}
	_, err := userlock.Exec(ctx, o.my, "SET @go_sqllock_row=@@SESSION.innodb_lock_wait_timeout,@go_sqllock_table=@@SESSION.lock_wait_timeout,"+
		limit("innodb_lock_wait_timeout")+","+limit("lock_wait_timeout"))
	if err != nil {
		return err
	}
	err = f()
	if errors.Is(err, sqllock.ErrSessionGone) {
		return err
	}
	const back = "SET SESSION innodb_lock_wait_timeout=@go_sqllock_row,SESSION lock_wait_timeout=@go_sqllock_table"
	_, failed := userlock.Exec(ctx, o.my, back)
	if errors.Is(failed, sqllock.ErrInterrupted) {
		_, failed = userlock.Exec(ctx, o.my, back)
	}
	if failed != nil && !errors.Is(failed, sqllock.ErrSessionGone) {
		failed = fmt.Errorf("%w: its settings could not be put back: %w", sqllock.ErrSessionGone, failed)
	}
	if failed != nil {
		return failed
	}
	return err
}

// row is what a look finds.
type row struct {
	there bool
	token string
	left  time.Duration
	kind  string
	odd   bool
}

// look asks for the row of id, after the statements.
func (o *on) look(ctx context.Context, id string, before ...string) (r row, err error) {
	var token, kind sql.NullString
	var left sql.NullInt64
	var odd sql.NullBool
	err = o.run(ctx, []sql.Scanner{&token, &left, &kind, &odd}, append(before, o.q.look(id))...)
	return row{token.Valid, token.String, micros(left.Int64), kind.String, odd.Bool}, err
}

// lookFirst asks for the row of id, and then runs the statements.
func (o *on) lookFirst(ctx context.Context, id string, after ...string) (r row, err error) {
	var token, kind sql.NullString
	var left sql.NullInt64
	var odd sql.NullBool
	err = o.run(ctx, []sql.Scanner{&token, &left, &kind, &odd}, append([]string{o.q.look(id)}, after...)...)
	return row{token.Valid, token.String, micros(left.Int64), kind.String, odd.Bool}, err
}

// micros is n microseconds, or the longest duration there is.
func micros(n int64) time.Duration {
	return time.Duration(min(n, math.MaxInt64/int64(time.Microsecond))) * time.Microsecond
}

// table is what was seen of a table of MySQL.
type table struct {
	zoned bool // the end is a TIMESTAMP, which depends on the time zone of the session
}

// admit looks at the server and the table of a session of a new kind.
func (o *on) admit(ctx context.Context, r row) error {
	var t table
	if o.pg == nil {
		seen, ok := o.b.admitted.Get(r.kind)
		if !ok {
			var err error
			if seen, err = o.inspect(ctx); err != nil {
				return err
			}
			o.b.admitted.Put(r.kind, seen)
		}
		t = seen
	}
	switch {
	case r.odd && o.pg != nil:
		return fmt.Errorf("%w: column %s of table %s depends on the TimeZone of each session, which differs between programs; it has to be a timestamp without time zone",
			sqllock.ErrUnsupported, o.q.f.Until.Name, o.q.f.Table)
	case r.odd && t.zoned:
		return fmt.Errorf("%w: the time_zone of the session is not that of the server (@@GLOBAL.time_zone), under which the others write column %s; take it out of the DSN",
			sqllock.ErrUnsupported, o.q.f.Until.Name)
	}
	return nil
}

// inspect returns an error if locks in the table exclude less than everybody.
func (o *on) inspect(ctx context.Context) (table, error) {
	vars := make(map[string]string)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), userlock.AnswerTime)
	defer cancel()
	err := o.my.Query(ctx, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('read_only','innodb_read_only','wsrep_on','group_replication_group_name','group_replication_single_primary_mode')",
		func(values []driver.Value) error {
			var name, value sql.NullString
			if err := errors.Join(name.Scan(values[0]), value.Scan(values[1])); err != nil {
				return err
			}
			vars[strings.ToLower(name.String)] = value.String
			return nil
		})
	if err != nil {
		return table{}, userlock.Classify(err)
	}
	on := func(name string) bool { return vars[name] != "" && vars[name] != "OFF" && vars[name] != "0" }
	f := o.q.f
	switch {
	case on("read_only") || on("innodb_read_only"):
		return table{}, errStandby("it is read-only")
	case on("wsrep_on"):
		return table{}, fmt.Errorf("%w: the server is a node of a Galera cluster, where a row that is locked on one node can be taken over on another", sqllock.ErrUnsupported)
	case vars["group_replication_group_name"] != "" && !on("group_replication_single_primary_mode"):
		return table{}, fmt.Errorf("%w: the server is one of several primaries of a replication group, where a row that is locked on one can be taken over on another", sqllock.ErrUnsupported)
	}
	var engine, kind sql.NullString
	var unique sql.NullInt64
	if err := userlock.Ask(ctx, o.my, o.q.shape(), &engine, &unique, &kind); err != nil {
		return table{}, o.q.explain(err)
	}
	switch {
	case engine.String != "" && !strings.EqualFold(engine.String, "InnoDB"):
		return table{}, fmt.Errorf("%w: table %s is of the engine %s, which has no row locks to guard a transaction by: ALTER TABLE %s ENGINE=InnoDB",
			sqllock.ErrUnsupported, f.Table, engine.String, o.q.table)
	case unique.Int64 == 0:
		return table{}, fmt.Errorf("%w: nothing keeps a second row of one lock out of table %s: ALTER TABLE %s ADD PRIMARY KEY (%s)",
			sqllock.ErrNoTable, f.Table, o.q.table, o.q.id)
	}
	return table{zoned: strings.EqualFold(kind.String, "timestamp")}, nil
}
