package torture

import (
	"database/sql"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// ttl is that of the locks which have one.
const ttl = time.Second

// form is how the work on a shard is guarded. All processes use the same one on a
// shard: a lock of another backend, or work without the fence, protects from other
// things.
type form struct {
	leases string // the table of the locks; "" for those that live as long as their session
	do     bool   // txguard.Do and TryDo, with evidence
	fenced bool   // the work is on another session
}

// name is that of the lock of a shard.
func name(shard int) string { return fmt.Sprintf("shard-%d", shard) }

// lockers make the locks of the shards, helped by the pool that help returns, if that is
// not nil.
func lockers(d dialect, namespace string, help func() *sql.DB) (ls []*sqllock.Locker) {
	for _, f := range d.forms() {
		ls = append(ls, sqllock.New(d.backend(f, help()), sqllock.WithNamespace(namespace)))
	}
	return ls
}
