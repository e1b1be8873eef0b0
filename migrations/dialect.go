package migrations

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/pressly/goose/v3/database"

	"github.com/sqllock/go-sqllock/sqllock"
)

// dialect is what the migrations for one kind of server have of their own.
type dialect struct {
	goose    database.Dialect
	other    string // what to do if the server speaks another one
	backend  func() sqllock.Backend
	locks    *set
	fences   *set
	quote    string                 // on both sides of an identifier
	limit    int                    // of the length of an identifier
	reserved func(name string) bool // whether a table can't be called like that
	look     func(table string) string

	schema    string // asks where the tables are, or are to be made; NULL is nowhere
	nowhere   string // what to do then, for a kind of row
	elsewhere string // what to do to have them in another one
	searched  bool   // whether a name without a schema may be found in others
	renew     string // has a session see what was done before the lock, "" if it does
}

// querier is what a *sql.DB and a *sql.Conn have in common.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// schema returns where the tables are, or are to be made.
func (c *config) schema(ctx context.Context, q querier) (string, error) {
	var name sql.NullString
	err := q.QueryRowContext(ctx, c.dialect.schema).Scan(&name)
	if err == nil && !name.Valid {
		err = c.errNowhere()
	}
	return name.String, err
}

func (c *config) errNowhere() error { return fmt.Errorf(c.dialect.nowhere, c.set.row) }

// versions returns the store of the versions. Where the server would look for its
// table in several schemas, it is one statement that asks for the right one.
func (c *config) versions(ctx context.Context, q querier) (store, error) {
	table := c.dialect.quote + c.table + versionSuffix + c.dialect.quote
	if c.dialect.searched {
		schema, err := c.schema(ctx, q)
		if err != nil {
			return store{}, err
		}
		table = schema + "." + table
	}
	return newStore(c.dialect.goose, table)
}
