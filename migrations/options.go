package migrations

import (
	"cmp"
	"fmt"
	"strings"
)

const (
	versionSuffix = "_version"
	maxTableLen   = 64 - len(versionSuffix) // the servers take 64 characters
	tableAlphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$"
)

// Option configures the migrations. Give all calls for one table the same ones.
type Option interface{ apply(*config) error }

type option func(*config) error

func (o option) apply(c *config) error { return o(c) }

// Fences has [Up], [Down], [FS] and [SQL] make the fence table of package txguard in
// place of the lock table. The two have nothing to do with each other: neither
// needs the other, and each has its own versions.
func Fences() Option {
	return option(func(c *config) error {
		c.set = fences()
		return nil
	})
}

// WithTable names the table in place of shared_locks, or with [Fences] in place of
// lock_fences: 1 to 56 ASCII letters, digits, "_" and "$". The versions are kept
// in a table of that name with "_version" behind it. The table is in the database
// of the DSN; a qualified name is refused.
func WithTable(name string) Option {
	return option(func(c *config) error {
		if strings.Contains(name, ".") {
			return fmt.Errorf("WithTable(%q): the table is in the database of the DSN: connect to that one, and leave it out of the name", name)
		}
		if name == "" || len(name) > maxTableLen || strings.Trim(name, tableAlphabet) != "" {
			return fmt.Errorf("WithTable(%q): the name must be 1 to %d ASCII letters, digits, _ and $", name, maxTableLen)
		}
		c.table = name
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
// [Fences] this option is an error: the fence table is always InnoDB.
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
	set           *set
	table, engine string
}

func configure(opts []Option) (*config, error) {
	c := &config{set: locks()}
	for _, o := range opts {
		if err := o.apply(c); err != nil {
			return nil, err
		}
	}
	if c.engine != "" && c.set.engine != "" {
		return nil, fmt.Errorf("WithEngine(%q): the table of Fences is %s, since its rows are a part of the caller's transaction: leave WithEngine out",
			c.engine, c.set.engine)
	}
	c.table = cmp.Or(c.table, c.set.table)
	c.engine = cmp.Or(c.engine, c.set.engine)
	return c, nil
}
