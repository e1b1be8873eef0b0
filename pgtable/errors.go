package pgtable

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/sqllock"
)

// SQLSTATEs of a table or a sequence that is not what it should be.
const (
	noSchema     = "3F000" // invalid_schema_name
	wrongObject  = "42809" // wrong_object_type
	noConflict   = "42P10" // invalid_column_reference: no unique index on name
	wrongType    = "42804" // datatype_mismatch
	notNull      = "23502" // not_null_violation
	tooLong      = "22001" // string_data_right_truncation
	unsupported  = "0A000" // feature_not_supported
	endOfNumbers = "2200H" // sequence_generator_limit_exceeded
)

func errInTransaction() error {
	return fmt.Errorf("%w, which statements on the lock table would join: acquire and extend outside of it, or give the backend a pool (pgtable.WithPool)",
		sqllock.ErrInTransaction)
}

// errKill says why the session of a holder could not be ended.
func errKill(who string, session int64, err error) error {
	return fmt.Errorf("%w: this role may not end session %d, of %s; use one role for all, or GRANT the role of the holder, or pg_signal_backend, "+
		"to this one (a superuser's session only a superuser can end): %w", sqllock.ErrPermission, session, who, err)
}

// up is the call that makes the table.
func (b *Backend) up() string {
	schema, name, qualified := strings.Cut(b.name, ".")
	if !qualified {
		schema, name = "", b.name
	}
	call := "migrations.Up(ctx, db, migrations.Postgres())"
	if name != defaultName {
		call = `migrations.Up(ctx, db, migrations.Postgres(), migrations.WithTable("` + name + `"))`
	}
	if qualified {
		call += " on a pool whose search_path begins with " + schema
	}
	return call
}

// explain adds to the server's errors about the table what to do.
func (b *Backend) explain(err error) error {
	switch code := pgsession.Code(err); code {
	case "":
		if errors.Is(err, pgsession.ErrSilent) {
			return fmt.Errorf("%w; is table %s locked (LOCK TABLE, ALTER TABLE, VACUUM FULL)?", err, b.name)
		}
	case pgsession.NoTable, noSchema:
		return fmt.Errorf("%w: there is no table %s with its sequence %s in the search_path of this role: run %s, which makes both: %w",
			sqllock.ErrNoTable, b.name, sequenceOf(b.name), b.up(), err)
	case pgsession.NoColumn, wrongObject, noConflict, wrongType, pgsession.NoFunction, notNull, tooLong:
		return fmt.Errorf("%w: table %s with its sequence %s is not one of locks as %s makes it: run that, or name another one by pgtable.WithTable: %w",
			sqllock.ErrNoTable, b.name, sequenceOf(b.name), b.up(), err)
	case pgsession.NoPrivilege:
		return fmt.Errorf("%w: this role needs GRANT SELECT, INSERT, UPDATE, DELETE ON %s, GRANT USAGE ON SEQUENCE %s, and USAGE on their schema: %w",
			sqllock.ErrPermission, b.name, sequenceOf(b.name), err)
	case pgsession.ReadOnlyTx, unsupported:
		return fmt.Errorf("%w: the server takes no writes, so it is a standby; connect to the primary (target_session_attrs=read-write): %w",
			sqllock.ErrUnsupported, err)
	case pgsession.LockTimeout:
		return fmt.Errorf("another session has locked table %s, or the row, for %v (LOCK TABLE, ALTER TABLE, an open transaction that has changed it): %w",
			b.name, pgsession.RowTime, err)
	case endOfNumbers:
		return fmt.Errorf("sequence %s has come to its end: ALTER SEQUENCE %s AS bigint NO MAXVALUE: %w", sequenceOf(b.name), sequenceOf(b.name), err)
	}
	return err
}

// lost is the end of a lock whose session may have the doorbell, and may be about to be
// ended for it: nobody is to use it any more.
func lost(why string) error {
	return fmt.Errorf("%w: %s; %w", sqllock.ErrLost, why, sqllock.ErrSessionGone)
}

const (
	whyGone = "its row is gone, or has been taken over"
	whyOver = "its TTL is over, or it has been taken over"
)

// gone puts ErrLost before the end of a session.
func gone(err error) error {
	if errors.Is(err, sqllock.ErrSessionGone) && !errors.Is(err, sqllock.ErrLost) {
		return fmt.Errorf("%w: %w", sqllock.ErrLost, err)
	}
	return err
}
