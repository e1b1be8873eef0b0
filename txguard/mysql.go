package txguard

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

// mySQL is MySQL and MariaDB.
type mySQL struct{}

var errImplicit = fmt.Errorf("%w, by a statement that commits implicitly, even one that failed, or by an error that rolls it back, such as a deadlock, and was not returned", errEndedEarly)

// vacant notices when the server has closed the connection. What the driver says of an
// open transaction may be of before an error.
func (mySQL) vacant(ctx context.Context, conn *sql.Conn) error {
	var st userlock.Status
	err := userlock.Use(conn, func(s *session.Session) (err error) {
		if err := s.Alive(ctx); err != nil {
			return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, err)
		}
		now, known := userlock.Known(s)
		if !known || now.Open {
			now, err = userlock.Refresh(ctx, s)
		}
		st = now
		return err
	})
	switch {
	case err != nil:
		return err
	case st.Open:
		return errLeftAsItIs
	case !st.Autocommit:
		return fmt.Errorf("%w: autocommit is off on the session, so that a statement that commits implicitly could not be noticed; SET autocommit=1", sqllock.ErrUnsupported)
	}
	return nil
}

func (mySQL) notBegun(_ *sql.Conn, err error) error { return err }

func (mySQL) idle(conn *sql.Conn) error {
	err := session.Use(conn, func(s *session.Session) error { return s.Idle() })
	if errors.Is(err, session.ErrUnusable) {
		return errOpenRows
	}
	return err
}

// stillOpen is by the last answer that was no error.
func (mySQL) stillOpen(ctx context.Context, conn *sql.Conn) error {
	return session.Use(conn, func(s *session.Session) (err error) {
		st, known := userlock.Known(s)
		if !known {
			st, err = userlock.AskStatus(ctx, s)
		}
		if err != nil {
			return err
		}
		return early(st)
	})
}

func early(st userlock.Status) error {
	switch {
	case !st.Open:
		return errImplicit
	case !st.Autocommit:
		return fmt.Errorf("%w; autocommit was switched off", errImplicit)
	}
	return nil
}

// endedEarly may be asked because of the error of the last statement. That statement
// may have committed implicitly, so another answer is asked for. A deadlock has rolled
// back: the session itself says whether that was its last statement's error, and it is
// followed by no other answer unless the function has gone on.
func (d mySQL) endedEarly(ctx context.Context, conn *sql.Conn, why error) (found error) {
	_ = session.Use(conn, func(s *session.Session) error {
		st, known := userlock.Known(s)
		if known && !st.Open {
			found = errImplicit
			return nil
		}
		rolledBack := false
		if d.transient(why) {
			last, err := userlock.LastError(ctx, s)
			if err != nil {
				return err
			}
			rolledBack = endsTransaction(last)
		}
		st, err := userlock.Refresh(ctx, s)
		if err == nil && (st.Open || !rolledBack) {
			found = early(st)
		}
		return err
	})
	return found
}

func (d mySQL) tidying(conn *sql.Conn, early bool) []string {
	if early || d.mayBeOpen(conn) {
		return []string{"ROLLBACK AND NO CHAIN", "UNLOCK TABLES", "SET autocommit=1"}
	}
	return nil
}

// chained is for completion_type.
func (d mySQL) chained(conn *sql.Conn) []string {
	if d.mayBeOpen(conn) {
		return []string{"ROLLBACK AND NO CHAIN"}
	}
	return nil
}

func (mySQL) mayBeOpen(conn *sql.Conn) bool {
	var st userlock.Status
	known := false
	_ = session.Use(conn, func(s *session.Session) error {
		st, known = userlock.Known(s)
		return nil
	})
	return !known || st.Open
}

func (d mySQL) execute(ctx context.Context, conn *sql.Conn, query string) error {
	_, err := d.exec(ctx, conn, query)
	return err
}

// exec runs a statement on the session under conn, and returns its insert id.
func (mySQL) exec(ctx context.Context, conn *sql.Conn, query string) (id int64, err error) {
	err = userlock.Use(conn, func(s *session.Session) error {
		res, err := userlock.Exec(ctx, s, query)
		if err != nil {
			return err
		}
		id, err = res.LastInsertId()
		return err
	})
	return id, err
}

func (mySQL) transient(err error) bool { return endsTransaction(userlock.Number(err)) }

// endsTransaction reports whether the server rolls back with an error of that number.
func endsTransaction(number uint16) bool {
	switch number {
	case 1213, // ER_LOCK_DEADLOCK
		1020: // ER_CHECKREAD: MariaDB's innodb_snapshot_isolation
		return true
	}
	return false
}

func (d mySQL) refused(_ *sql.Conn, err error) bool { return d.transient(err) }

func (mySQL) unsent(err error) bool { return errors.Is(err, driver.ErrBadConn) }

func (d mySQL) mint(ctx context.Context, conn *sql.Conn, table, key string, send func(func() error) error) (token int64, err error) {
	if err := d.unlocked(ctx, conn, d.table(table).peekQuery(key)); err != nil {
		return 0, err
	}
	err = send(func() (err error) {
		token, err = d.exec(ctx, conn, d.table(table).mintQuery(key))
		return err
	})
	return token, err
}

// unlocked waits, without a statement that waits, until nobody has the row that peek
// tries to lock: statements on the lock's session are given up after some seconds, and
// the session with them.
func (mySQL) unlocked(ctx context.Context, conn *sql.Conn, peek string) error {
	var token sql.NullInt64 // of no interest
	for {
		err := userlock.AskOver(ctx, conn, peek, &token)
		switch userlock.Number(err) {
		case 3572, // ER_LOCK_NOWAIT
			1205, // the same on MariaDB
			1213:
		default:
			return nil // what else there is, the next statement says
		}
		if wait(ctx, settlePause) != nil {
			return errBlocked(ctx, err)
		}
	}
}

func (d mySQL) raise(ctx context.Context, conn *sql.Conn, table, key string, token int64) (int64, error) {
	res, err := conn.ExecContext(ctx, d.table(table).raiseQuery(key, token))
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

func (mySQL) blocked(err error) bool {
	switch userlock.Number(err) {
	case 1205, // ER_LOCK_WAIT_TIMEOUT
		1213: // ER_LOCK_DEADLOCK
		return true
	}
	return false
}

func (d mySQL) note(ctx context.Context, conn *sql.Conn, table, key string, id []byte) (seq int64, place uint32, err error) {
	return d.written(d.exec(ctx, conn, d.table(table).noteQuery(key, id)))
}

func (d mySQL) pass(ctx context.Context, conn *sql.Conn, table, key string, token int64, id []byte) (seq int64, place uint32, err error) {
	return d.written(d.exec(ctx, conn, d.table(table).passQuery(key, token, id)))
}

// written takes an insert id apart.
func (mySQL) written(n int64, failed error) (seq int64, place uint32, err error) {
	return int64(uint64(n) >> 32), uint32(uint64(n)), failed //nolint:gosec // two halves
}

// superseded: an UPDATE that finds its row changed reads it as it is, under any
// isolation level, so the pass itself has told.
func (mySQL) superseded(context.Context, *sql.Conn, string, string, error) (latest int64, known bool) {
	return 0, false
}

// look reads the row under its lock, for which a transaction that has written it
// makes everybody wait until it is decided. A read without one might be of the moment
// before.
func (d mySQL) look(ctx context.Context, db *sql.DB, table, key string) (seq int64, commits []byte, place uint32, err error) {
	t := d.table(table)
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return 0, nil, 0, err
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	err = tx.QueryRowContext(ctx, t.lookQuery(key)).Scan(&seq, &commits, &place)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.QueryRowContext(ctx, "SELECT "+t.place()+" p").Scan(&place)
	}
	return seq, commits, place, err
}

func (d mySQL) sweep(ctx context.Context, db *sql.DB, table string, seconds int64) (removed int64, err error) {
	res, err := db.ExecContext(ctx, d.table(table).sweepQuery(seconds))
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (mySQL) explain(table string, err error) error {
	switch userlock.Number(err) {
	case 1146, 1054: // ER_NO_SUCH_TABLE, ER_BAD_FIELD_ERROR
		return fmt.Errorf("%w: %s: run migrations.Up(ctx, db, migrations.Fences()) on that database: %w", sqllock.ErrNoTable, table, err)
	case 1142, 1143, 1044: // ER_TABLEACCESS_DENIED_ERROR, ER_COLUMNACCESS_DENIED_ERROR, ER_DBACCESS_DENIED_ERROR
		return fmt.Errorf("%w: the fence needs SELECT, INSERT, UPDATE (and DELETE for Sweep) on %s: %w", sqllock.ErrPermission, table, err)
	}
	return err
}
