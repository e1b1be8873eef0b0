package torture

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"

	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// Kinds lists the kinds of servers that there is a torture for.
func Kinds() []testdb.Kind { return append(testdb.Kinds(), testdb.Postgres) }

// dialect is what differs between the servers.
type dialect interface {
	// forms are those of the shards, in their order.
	forms() []form
	backend(f form, pool *sql.DB) sqllock.Backend

	// levels are what a transaction may ask for. One that is not guarded has only those
	// that let it lose an update.
	levels(guarded bool) []sql.IsolationLevel

	// serverOptions are those of a server that does not forget what was committed when it
	// is killed.
	serverOptions() []string

	// address is where the server of a DSN listens for TCP.
	address(dsn string) (string, error)

	// open opens a pool on a database of the server, "" for that of the DSN, and join
	// one for a process, in which wires and rng have their way.
	open(dsn, database string) (*sql.DB, error)
	join(j job, wires *wire, rng *rand.Rand) (*sql.DB, error)

	// migrate makes the tables of the locks and of the fence. ddl is how the other
	// ones are made: the type of a key that counts by itself, and what ends a CREATE TABLE.
	migrate(ctx context.Context, db *sql.DB) error
	ddl() (serial, end string)

	// bind is a query whose arguments are question marks, for the driver.
	bind(query string) string

	// self is the expression for the id of the session, others the query for how many
	// more there are in the database of that name, and end ends one.
	self() string
	others() string
	end(ctx context.Context, db *sql.DB, session int64) error

	// point is where an attempt has got to when that is sent, "" if nowhere special.
	// undecided is whether the outcome of a COMMIT is not to be known from its answer.
	point(sent []byte) point
	undecided(answer []byte) bool
}

func dialectOf(kind testdb.Kind) (dialect, error) {
	switch kind {
	case testdb.MySQL, testdb.MariaDB:
		return mySQL{}, nil
	case testdb.Postgres:
		return postgres{}, nil
	}
	return nil, fmt.Errorf("there is no torture for %s", kind)
}
