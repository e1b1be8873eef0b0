package migrations

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/pressly/goose/v3/database"
)

const (
	versionSuffix = "_version"
	tokenSuffix   = "_token"
	tableAlphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$"
)

// Option configures the migrations. Give all calls for one table the same ones.
type Option interface{ apply(*config) error }

type option func(*config) error

func (o option) apply(c *config) error { return o(c) }

// Postgres has [Up], [Down], [FS] and [SQL] speak to PostgreSQL, over a pool of
// github.com/jackc/pgx/v5/stdlib. Without it they speak to MySQL and MariaDB. Given
// or left out by mistake it costs nothing: the first statement fails, and the error
// says why.
func Postgres() Option {
	return option(func(c *config) error {
		c.dialect = postgresDialect()
		return nil
	})
}

// Fences has [Up], [Down], [FS] and [SQL] make the fence table of package txguard in
// place of the lock table. The two have nothing to do with each other: neither
// needs the other, and each has its own versions.
func Fences() Option {
	return option(func(c *config) error {
		c.fences = true
		return nil
	})
}

// WithTable names the table in place of shared_locks, or with [Fences] in place of
// lock_fences: 1 to 56 ASCII letters, digits, "_" and "$", with [Postgres] 1 to 55, no
// two "$" side by side, and no "pg_" at the beginning; there letter case matters. The
// versions are kept in a table of that name with "_version" behind it, and the tokens
// of PostgreSQL come from a sequence with "_token" behind it. The table is in the
// database of the DSN, or in the current schema of PostgreSQL; a qualified name is
// refused.
func WithTable(name string) Option {
	return option(func(c *config) error {
		c.table, c.named = name, true
		return nil
	})
}

// WithEngine sets the storage engine of the lock table, "InnoDB" or "MyISAM". A
// table that is adopted is converted to it; one that is up to date is left as it
// is. With InnoDB the unique key of a new table is its primary key, as servers
// with sql_require_primary_key want it.
//
// Without this option a new table is MyISAM, which the PHP package relies on,
// since it ignores transactions; one that is adopted keeps its engine. With
// [Fences] this option is an error, since the fence table is always InnoDB, and with
// [Postgres], which has no engines.
func WithEngine(engine string) Option {
	return option(func(c *config) error {
		if engine != "InnoDB" && engine != "MyISAM" {
			return fmt.Errorf("WithEngine(%q): it must be InnoDB or MyISAM", engine)
		}
		c.engine = engine
		return nil
	})
}

// config is what the options say. An empty engine is none in particular.
type config struct {
	dialect       *dialect
	fences, named bool
	set           *set
	table, engine string
}

func configure(opts []Option) (*config, error) {
	c := &config{dialect: mysqlDialect()}
	for _, o := range opts {
		if err := o.apply(c); err != nil {
			return nil, err
		}
	}
	c.set = c.dialect.locks
	if c.fences {
		c.set = c.dialect.fences
	}
	switch {
	case c.engine == "":
	case c.dialect.goose == database.DialectPostgres:
		return nil, fmt.Errorf("WithEngine(%q): PostgreSQL has no engines to choose from: leave WithEngine out", c.engine)
	case c.set.engine != "":
		return nil, fmt.Errorf("WithEngine(%q): the table of Fences is %s, since its rows are a part of the caller's transaction: leave WithEngine out",
			c.engine, c.set.engine)
	}
	c.engine = cmp.Or(c.engine, c.set.engine)
	if !c.named {
		c.table = c.set.table
	}
	if err := c.checkTable(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *config) checkTable() error {
	length := c.dialect.limit - len(versionSuffix)
	switch {
	case strings.Contains(c.table, "."):
		return fmt.Errorf("WithTable(%q): %s, and leave it out of the name", c.table, c.dialect.elsewhere)
	case c.table == "" || len(c.table) > length || strings.Trim(c.table, tableAlphabet) != "":
		return fmt.Errorf("WithTable(%q): the name must be 1 to %d ASCII letters, digits, _ and $", c.table, length)
	case c.dialect.reserved(c.table):
		return fmt.Errorf(`WithTable(%q): on PostgreSQL the name must not begin with "pg_", nor have "$$" in it`, c.table)
	}
	return nil
}
