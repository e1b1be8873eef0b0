package userlock

import (
	"context"
	"database/sql"
	"errors"
	"reflect"
	"strconv"
	"sync"

	"github.com/sqllock/go-sqllock/internal/session"
)

// Status is what a session says of its transaction.
type Status struct {
	Open       bool // a transaction is open
	Autocommit bool // a statement outside of a transaction is one of its own
}

// The server's status flags, which come with every answer but errors.
const (
	statusInTransaction = 1 << 0 // SERVER_STATUS_IN_TRANS
	statusAutocommit    = 1 << 1 // SERVER_STATUS_AUTOCOMMIT
)

// Known returns the status as of the last answer on the session that was no error.
// The driver has it, in a field of its own; MySQL tells it by no statement but one
// that fails, which is a round trip. So it is read where it is, and ok is false for
// a driver without that field, or one that wraps another.
func Known(s *session.Session) (st Status, ok bool) {
	v := reflect.Indirect(reflect.ValueOf(s.Driver()))
	if !v.IsValid() {
		return st, false
	}
	index := statusField(v.Type())
	if index < 0 {
		return st, false
	}
	flags := v.Field(index).Uint()
	return Status{Open: flags&statusInTransaction != 0, Autocommit: flags&statusAutocommit != 0}, true
}

// fields are the indices of the field in the types that have been seen, -1 for none.
var fields sync.Map //nolint:gochecknoglobals // types are for the whole process, and looking for it takes longer than the rest

func statusField(t reflect.Type) int {
	if index, ok := fields.Load(t); ok {
		return index.(int) //nolint:errcheck,forcetypeassert // nothing else is stored
	}
	index := -1
	if t.PkgPath() == "github.com/go-sql-driver/mysql" && t.Kind() == reflect.Struct {
		if f, ok := t.FieldByName("status"); ok && f.Type.Kind() == reflect.Uint16 && len(f.Index) == 1 {
			index = f.Index[0]
		}
	}
	fields.Store(t, index)
	return index
}

// Refresh has the server answer, in one round trip, so that what is known is of now,
// or asks it.
func Refresh(ctx context.Context, s *session.Session) (Status, error) {
	if _, known := Known(s); !known {
		return AskStatus(ctx, s)
	}
	_, err := Exec(ctx, s, "DO 0")
	st, _ := Known(s)
	return st, err
}

// LastError returns the number of the error of the last statement on the session, 0
// if it had none, in one round trip.
func LastError(ctx context.Context, s *session.Session) (uint16, error) {
	var level, number, text sql.NullString
	err := Ask(ctx, s, "SHOW ERRORS LIMIT 1", &level, &number, &text)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(number.String, 10, 16)
	return uint16(n), err
}

// AskStatus asks the server, in two round trips.
func AskStatus(ctx context.Context, s *session.Session) (st Status, err error) {
	var version sql.NullString
	var on, in sql.NullBool
	err = Ask(ctx, s, "SELECT VERSION() v,@@autocommit a", &version, &on)
	switch {
	case err != nil:
	case IsMariaDB(version.String):
		err = Ask(ctx, s, "SELECT @@in_transaction v", &in)
	default:
		in.Bool, err = InTransactionMySQL(ctx, s)
	}
	return Status{Open: in.Bool, Autocommit: on.Bool}, err
}

// InTransactionMySQL asks MySQL, which says it only by refusing this. Where it
// does not, it is about the next transaction, which the caller has to begin, or to
// use up by a statement.
func InTransactionMySQL(ctx context.Context, s *session.Session) (bool, error) {
	_, err := Exec(ctx, s, "SET TRANSACTION READ WRITE")
	if Number(err) == 1568 { // ER_CANT_CHANGE_TX_CHARACTERISTICS
		return true, nil
	}
	return false, err
}
