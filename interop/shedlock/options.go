package shedlock

import (
	"database/sql"
	"time"

	"github.com/sqllock/go-sqllock/internal/rowlock"
)

// Option configures a [Backend].
type Option interface{ apply(*options) }

type options struct {
	pool *sql.DB
	row  []rowlock.Option
}

type option func(*options)

func (f option) apply(o *options) { f(o) }

func with(r rowlock.Option) Option { return option(func(o *options) { o.row = append(o.row, r) }) }

// WithPool lends the backend connections of db, each for a statement or a few, for what the
// session of a lock can't do: anything while it is in a transaction, an extension while it is
// busy, and the release when it is gone. It must lead to the same server and database. The
// application's own pool will do where it has a connection to spare at that moment; what can't
// be done within five seconds fails with an error that says so.
func WithPool(db *sql.DB) Option { return option(func(o *options) { o.pool = db }) }

// WithTable names the table, with its schema in front if it is not in the default database,
// or the search_path, of the sessions. Without it the table is called shedlock. Letter case
// counts. It panics unless each name is 1 to 63 ASCII letters, digits, "_" or "$".
func WithTable(name string) Option { return with(rowlock.Table("shedlock", name)) }

// WithColumns names the columns, as ShedLock's ColumnNames does. Without it they are name,
// lock_until, locked_at and locked_by. It panics unless each name is 1 to 63 ASCII letters,
// digits, "_" or "$".
func WithColumns(name, lockUntil, lockedAt, lockedBy string) Option {
	return with(rowlock.Columns("shedlock", name, lockedBy, lockUntil, lockedAt))
}

// WithName has the lock that is called ours here be the one that Java calls theirs. It is for
// names that [sqllock.Key] does not leave as they are, those that are not ASCII, and for locks
// in a namespace: ours is then "namespace:name". It panics if one of them is not a name.
func WithName(ours, theirs string) Option { return with(rowlock.Name("shedlock", ours, theirs)) }

// WithClockSkew sets how far the clock of any host that runs Java may be from that of the
// server, either way, for a ShedLock without usingDbTime. Locks are written for as much longer,
// and one of others is taken as much later. Without it that is nothing. It panics if d is
// negative, or more than an hour.
func WithClockSkew(d time.Duration) Option { return with(rowlock.Skew("shedlock", d)) }
