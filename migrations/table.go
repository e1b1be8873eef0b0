package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
)

// columns are the columns of a table by their names. A table that is missing has
// none.
type columns map[string]column

type column struct {
	dataType string
	length   int64  // of text, in characters
	key      string // PRI: of the primary key; UNI: a unique key of its own
	counts   bool   // AUTO_INCREMENT, whose insert id would take the place of a token
	needed   bool   // an INSERT that leaves it out fails
}

// querier is what a *sql.DB and a *sql.Conn have in common.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func (c *config) columns(ctx context.Context, q querier) (columns, error) {
	rows, err := q.QueryContext(ctx, "SELECT column_name, data_type, COALESCE(LEAST(character_maximum_length,65535),0), column_key, "+
		"extra LIKE '%auto_increment%', is_nullable='NO' AND column_default IS NULL AND extra='' FROM information_schema.columns "+
		"WHERE table_schema = DATABASE() AND table_name = '"+c.table+"'")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := make(columns)
	for rows.Next() {
		var name string
		var c column
		if err := rows.Scan(&name, &c.dataType, &c.length, &c.key, &c.counts, &c.needed); err != nil {
			return nil, err
		}
		found[name] = c
	}
	return found, rows.Err()
}

// adoptable returns an error if there is a table that is not a lock table of any
// version.
func (c *config) adoptable(ctx context.Context, q querier) error {
	found, err := c.columns(ctx, q)
	if err != nil || len(found) == 0 {
		return err
	}
	why := found.lack("name", "connection_id", "created", "ttl", "lock_acquired")
	if why == "" && !found.keyed() {
		why = "no unique key on the column name alone"
	}
	if why == "" {
		why = found.spoil()
	}
	_, token := found["token"]
	_, holder := found["holder"]
	if why == "" && (token || holder) {
		why = found.lack("token", "holder")
	}
	if why != "" {
		return fmt.Errorf("the table %s is there, but is no table for locks as it is, and was not altered: it has %s; "+
			"alter it, or name another one by WithTable", c.table, why)
	}
	return nil
}

// creatable returns an error if the server wants primary keys, and the table that
// is to be made would have none.
func (c *config) creatable(ctx context.Context, q querier) error {
	found, err := c.columns(ctx, q)
	if err != nil || len(found) > 0 || c.engine == "InnoDB" {
		return err
	}
	rows, err := q.QueryContext(ctx, "SHOW VARIABLES WHERE variable_name='sql_require_primary_key' AND value='ON'")
	if err != nil {
		return err
	}
	defer rows.Close()
	if rows.Next() {
		return errors.New(`the server requires primary keys (sql_require_primary_key): use WithEngine("InnoDB"), with which the table has one`)
	}
	return rows.Err()
}

// complete returns an error if the lock table is not as the newest version has
// it, whatever the version table says.
func (c *config) complete(ctx context.Context, q querier) error {
	found, err := c.columns(ctx, q)
	if err != nil {
		return err
	}
	if why := found.lack("name", "connection_id", "created", "ttl", "lock_acquired", "token", "holder"); why != "" {
		return fmt.Errorf("the table %s has %s, though %s says that it is up to date: it was dropped or altered since, "+
			"or this user may not see it; drop %[3]s, and call Up again", c.table, why, c.table+versionSuffix)
	}
	return nil
}

// lack says which of the named columns is not there, or of no use, "" if none.
func (c columns) lack(names ...string) string {
	for _, name := range names {
		types := []string{"tinyint", "smallint", "mediumint", "int", "bigint"}
		if name == "name" || name == "holder" {
			types = []string{"char", "varchar", "binary", "varbinary"}
		}
		column, ok := c[name]
		if !ok {
			return "no column " + name
		}
		if !slices.Contains(types, column.dataType) {
			return "a column " + name + " of type " + column.dataType
		}
	}
	return ""
}

// nameLength is what sqllock.Key needs.
const nameLength = 64

// spoil says what keeps locks from being made in the table, "" if nothing does.
func (c columns) spoil() string {
	if c["name"].length < nameLength {
		return fmt.Sprintf("a column name of %d characters, and names have up to %d", c["name"].length, nameLength)
	}
	for name, column := range c {
		switch {
		case column.counts:
			return "a column " + name + " with AUTO_INCREMENT, whose values would be taken for fencing tokens"
		case column.needed && !slices.Contains([]string{"name", "connection_id", "created", "ttl", "lock_acquired"}, name):
			return "a column " + name + " without a default, which locks do not fill"
		}
	}
	return ""
}

// keyed reports whether no name can be there twice.
func (c columns) keyed() bool {
	primary := 0
	for _, column := range c {
		if column.key == "PRI" {
			primary++
		}
	}
	key := c["name"].key
	return key == "UNI" || key == "PRI" && primary == 1
}
