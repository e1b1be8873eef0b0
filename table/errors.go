package table

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

const (
	noDoorbell = 1048 // ER_BAD_NULL_ERROR, as queries.insert brings it about
	duplicate  = 1062 // ER_DUP_ENTRY
	deadlock   = 1213 // ER_LOCK_DEADLOCK
)

// inTransaction reports whether a server refuses a statement because of the
// transaction, or the LOCK TABLES, of its session. It has not run then.
func inTransaction(number uint16) bool {
	switch number {
	case 1785, // ER_GTID_UNSAFE_NON_TRANSACTIONAL_TABLE: MyISAM after InnoDB
		1792,       // ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
		1099, 1100: // ER_TABLE_NOT_LOCKED_FOR_WRITE, ER_TABLE_NOT_LOCKED
		return true
	}
	return false
}

func errInTransaction(cause error) error {
	return fmt.Errorf("%w: acquire and extend outside of it, or give the backend a pool (table.WithPool): %w",
		sqllock.ErrInTransaction, cause)
}

// reshaped reports whether the table is not what it was when it was looked at, or
// the session is of another database.
func reshaped(err error) bool {
	n := userlock.Number(err)
	return n == 1054 || n == 1146 // ER_BAD_FIELD_ERROR, ER_NO_SUCH_TABLE
}

// damaged reports whether err is about a table that REPAIR TABLE may mend. The
// small numbers are those of the storage engine, which MariaDB hands on.
func damaged(err error) bool {
	switch userlock.Number(err) {
	case 126, 127, 130, 134, 141, 144, 145,
		1034, // ER_NOT_KEYFILE
		1035, // ER_OLD_KEYFILE
		1194, // ER_CRASHED_ON_USAGE
		1195: // ER_CRASHED_ON_REPAIR
		return true
	}
	return false
}

func (b *Backend) errNoTable(what string) error {
	return fmt.Errorf("%w: %s: run %s, which makes it", sqllock.ErrNoTable, what, b.up())
}

// up is the call that makes the table.
func (b *Backend) up() string {
	schema, name, qualified := strings.Cut(b.name, ".")
	if !qualified {
		schema, name = "", b.name
	}
	call := "migrations.Up(ctx, db)"
	if name != defaultName {
		call = `migrations.Up(ctx, db, migrations.WithTable("` + name + `"))`
	}
	if qualified {
		call += " on a pool whose DSN names the database " + schema
	}
	return call
}

func errNoDatabase() error {
	return fmt.Errorf("%w: no database is selected: name one in the DSN, or in table.WithTable(\"schema.shared_locks\")", sqllock.ErrNoTable)
}

// explain adds to the server's errors about the table what to do.
func (b *Backend) explain(err error) error {
	if errors.Is(err, userlock.ErrSilent) {
		return fmt.Errorf("%w; is table %s locked (LOCK TABLES, a backup, FLUSH TABLES WITH READ LOCK, an open transaction)?", err, b.name)
	}
	switch userlock.Number(err) {
	case 1146, 1051, 1049: // ER_NO_SUCH_TABLE, ER_BAD_TABLE_ERROR, ER_BAD_DB_ERROR
		return fmt.Errorf("%w: %w", b.errNoTable("there is no table "+b.name), err)
	case 1054: // ER_BAD_FIELD_ERROR
		return fmt.Errorf("%w: %w", b.errNoTable("table "+b.name+" has not the columns it needs"), err)
	case 1046: // ER_NO_DB_ERROR
		return fmt.Errorf("%w: %w", errNoDatabase(), err)
	case 1142, 1143, 1044, 1227: // ER_TABLEACCESS_DENIED_ERROR and the like
		return fmt.Errorf("%w: it needs SELECT, INSERT, UPDATE and DELETE on table %s: %w", sqllock.ErrPermission, b.name, err)
	case 1290, 1836: // ER_OPTION_PREVENTS_STATEMENT, ER_READ_ONLY_MODE
		return fmt.Errorf("%w: it is read-only now, so probably a replica; connect to the primary: %w", sqllock.ErrUnsupported, err)
	case 1205: // ER_LOCK_WAIT_TIMEOUT
		return fmt.Errorf("another session has locked table %s, or the row, for seconds (LOCK TABLES, a backup, an open transaction): %w", b.name, err)
	}
	return err
}
