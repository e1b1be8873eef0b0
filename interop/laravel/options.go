package laravel

import (
	"database/sql"
	"time"

	"github.com/sqllock/go-sqllock/internal/rowlock"
)

const defaultSkew = time.Second

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

// WithTable names the table (lock_table of the cache store), with its schema in front if it is
// not in the default database, or the search_path, of the sessions. Without it the table is
// called cache_locks. It panics unless each name is 1 to 63 ASCII letters, digits, "_" or "$".
func WithTable(name string) Option { return with(rowlock.Table("laravel", name)) }

// WithPrefix puts prefix before every name, its namespace included: what Laravel's
// cache.prefix is (CACHE_PREFIX, or the application's name with "-cache-" or "_cache_" behind
// it). It panics if prefix is not text.
func WithPrefix(prefix string) Option { return with(rowlock.Prefix("laravel", prefix)) }

// WithName has the lock that is called ours here be the one whose key in the table is theirs,
// whatever the prefix. It is for names that [sqllock.Key] does not leave as they are, such as
// those of more than 64 characters, and for locks in a namespace: ours is then
// "namespace:name". It panics if one of them is not a name.
func WithName(ours, theirs string) Option { return with(rowlock.Name("laravel", ours, theirs)) }

// WithClockSkew sets how far the clock of any host that runs PHP may be from that of the
// server, either way; without it that is a second. Laravel reads the time of its own host. So
// locks are written for as much longer, and one of others is taken as much later. It panics if
// d is negative, or more than an hour.
func WithClockSkew(d time.Duration) Option { return with(rowlock.Skew("laravel", d)) }
