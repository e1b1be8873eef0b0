package symfony

import (
	"database/sql"

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

// WithTable names the table (db_table in Symfony), with its schema in front if it is not in
// the default database, or the search_path, of the sessions. Without it the table is called
// lock_keys. It panics unless each name is 1 to 63 ASCII letters, digits, "_" or "$".
func WithTable(name string) Option { return with(rowlock.Table("symfony", name)) }

// WithColumns names the columns, as db_id_col, db_token_col and db_expiration_col do in
// Symfony. Without it they are key_id, key_token and key_expiration. It panics unless each
// name is 1 to 63 ASCII letters, digits, "_" or "$".
func WithColumns(id, token, expiration string) Option {
	return with(rowlock.Columns("symfony", id, token, expiration))
}

// WithPrefix puts prefix before every name, its namespace included, before it is hashed:
// "glueful_lock_" for Glueful. It panics if prefix is not text.
func WithPrefix(prefix string) Option { return with(rowlock.Prefix("symfony", prefix)) }

// WithName has the lock that is called ours here be the one that PHP calls theirs, whatever
// the prefix. It is for names that [sqllock.Key] does not leave as they are, such as those of
// more than 64 characters, and for locks in a namespace: ours is then "namespace:name". It
// panics if one of them is not a name.
func WithName(ours, theirs string) Option { return with(rowlock.Name("symfony", ours, theirs)) }
