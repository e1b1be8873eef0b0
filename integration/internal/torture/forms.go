package torture

import (
	"database/sql"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
)

// ttl is that of the locks which have one.
const ttl = time.Second

// form is how the work on a shard is guarded. All processes use the same one on a
// shard: a lock of another backend, or work without the fence, protects from other
// things.
type form struct {
	engine string // of the lock table; "" for mysqlnamed
	do     bool   // txguard.Do and TryDo, with evidence
	fenced bool   // the work is on another session
}

// forms are those of the shards, in their order.
func forms() []form {
	return []form{
		{engine: "MyISAM"},
		{engine: "InnoDB", do: true},
		{do: true},
		{engine: "MyISAM", fenced: true},
		{fenced: true},
	}
}

func (f form) leases() bool { return f.engine != "" }

// name is that of the lock of a shard.
func name(shard int) string { return fmt.Sprintf("shard-%d", shard) }

func lockTable(engine string) string { return "locks_" + engine }

// locker makes the locks of the form, helped by pool if that is not nil.
func (f form) locker(namespace string, pool *sql.DB) *sqllock.Locker {
	var b sqllock.Backend
	switch {
	case f.leases():
		opts := []table.Option{table.WithTable(lockTable(f.engine))}
		if pool != nil {
			opts = append(opts, table.WithPool(pool))
		}
		b = table.New(ttl, opts...)
	case pool != nil:
		b = mysqlnamed.New(mysqlnamed.WithControl(pool))
	default:
		b = mysqlnamed.New()
	}
	return sqllock.New(b, sqllock.WithNamespace(namespace))
}
