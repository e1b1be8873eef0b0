package migrations

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// definition is what the server says of a table. One that is missing has no
// columns.
type definition struct {
	table    string
	engine   string // or the kind of relation on PostgreSQL; "" for a view on MySQL
	sequence string // missing, unfit, or "" for neither
	columns  map[string]column
}

// What there is to say of the sequence of the tokens.
const (
	missing = "missing"
	unfit   = "unfit"
)

type column struct {
	dataType string
	length   int64  // of text, in characters
	key      string // PRI: of the primary key; UNI: a unique key of its own
	counts   bool   // AUTO_INCREMENT, whose insert id would take the place of a token
	needed   bool   // an INSERT that leaves it out fails
}

// look returns the definition of the table, or an error if the migrations of the
// other set have made it: somebody has left out Fences, or given it in vain.
func (c *config) look(ctx context.Context, q querier) (*definition, error) {
	rows, err := q.QueryContext(ctx, c.dialect.look(c.table))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := &definition{table: c.table, columns: make(map[string]column)}
	var comment string
	for rows.Next() {
		var name string
		var col column
		if err := rows.Scan(&name, &col.dataType, &col.length, &col.key, &col.counts, &col.needed, &found.engine, &found.sequence, &comment); err != nil {
			return nil, err
		}
		found.columns[name] = col
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if !c.set.sequence {
		found.sequence = ""
	}
	for _, other := range []*set{c.dialect.locks, c.dialect.fences} {
		if other.comment != c.set.comment && strings.HasPrefix(comment, other.comment) {
			return nil, fmt.Errorf("the table %s is one for %ss, as its comment says, not for %ss, and was not altered: "+
				"give Fences() in the calls for the fence table and in no others, or name another table by WithTable", c.table, other.row, c.set.row)
		}
	}
	return found, nil
}

// adoptable returns an error if there is a table that is not one of the set, of
// any version.
func (c *config) adoptable(ctx context.Context, q querier) error {
	found, err := c.look(ctx, q)
	if err != nil || len(found.columns) == 0 {
		return err
	}
	why := cmp.Or(found.mistake(c.set), found.lack(c.set.columns), found.spoil(c.set))
	if why == "" && slices.ContainsFunc(c.set.added, found.has) {
		why = found.lack(c.set.added)
	}
	if why != "" {
		return fmt.Errorf("the table %s is there, but is no table for %ss as it is, and was not altered: it has %s; "+
			"alter it, or name another one by WithTable", c.table, c.set.row, why)
	}
	return nil
}

// creatable returns an error if the server wants primary keys, and the table that
// is to be made would have none, which is so with MyISAM only.
func (c *config) creatable(ctx context.Context, q querier) error {
	found, err := c.look(ctx, q)
	if err != nil || len(found.columns) > 0 || c.engine != "" && c.engine != "MyISAM" {
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

// complete returns an error if the table is not as the newest version has it,
// whatever the version table says.
func (c *config) complete(ctx context.Context, q querier) error {
	found, err := c.look(ctx, q)
	if err != nil {
		return err
	}
	why := found.lack(slices.Concat(c.set.columns, c.set.added))
	if c.set.again {
		why = cmp.Or(found.mistake(c.set), why, found.spoil(c.set))
	}
	if why == "" && found.sequence == missing {
		why = "no sequence " + c.table + tokenSuffix
	}
	if why != "" {
		return fmt.Errorf("the table %s has %s, though %s says that it is up to date: it was dropped or altered since, "+
			"or this user may not see it; drop %[3]s, and call Up again", c.table, why, c.table+versionSuffix)
	}
	return nil
}

func (d *definition) has(n need) bool {
	_, ok := d.columns[n.name]
	return ok
}

// lack says which of the columns is not there, or of no use, "" if none.
func (d *definition) lack(needs []need) string {
	for _, n := range needs {
		if !d.has(n) {
			return "no column " + n.name
		}
		if found := d.columns[n.name].dataType; !slices.Contains(n.types, found) {
			return "a column " + n.name + " of type " + found
		}
	}
	return ""
}

// mistake says what the table is, if that is not the only thing that will do.
func (d *definition) mistake(s *set) string {
	if s.engine == "" || d.engine == "" || d.engine == s.engine {
		return ""
	}
	return s.form + " " + d.engine + ", and " + s.row + "s need " + s.engine
}

// spoil says what keeps rows of the set from being made in a table that has its
// columns, "" if nothing does.
func (d *definition) spoil(s *set) string {
	if !d.keyed(s.key) {
		return "no " + s.key + " key on the column name alone"
	}
	if d.sequence == unfit {
		return "a sequence " + d.table + tokenSuffix + " that may repeat a token or swap two: it has to be a bigint, ascending, NO CYCLE, CACHE 1, " +
			"logged, and owned by no column"
	}
	for _, n := range s.columns {
		if length := d.columns[n.name].length; length < n.length {
			return fmt.Sprintf("a column %s of %d characters, and %s have up to %d", n.name, length, n.holds, n.length)
		}
	}
	for name, column := range d.columns {
		switch {
		case column.counts:
			return "a column " + name + " with AUTO_INCREMENT, whose values would be taken for fencing tokens"
		case column.needed && !slices.ContainsFunc(s.columns, func(n need) bool { return n.name == name }):
			return "a column " + name + " without a default, which " + s.row + "s do not fill"
		}
	}
	return ""
}

// keyed reports whether no name can be there twice, by a key of that kind.
func (d *definition) keyed(kind string) bool {
	primary := 0
	for _, column := range d.columns {
		if column.key == "PRI" {
			primary++
		}
	}
	key := d.columns["name"].key
	return key == "UNI" && kind == "unique" || key == "PRI" && primary == 1
}
