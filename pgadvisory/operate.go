package pgadvisory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/sqllock"
)

// List tells of every advisory lock of 64 bits in the database of db that somebody holds,
// of this package or not, the doorbells of package pgtable among them; once for each
// session, and in no order. The server knows a lock by its number only: the Key is the
// one of keys that has that number, or else the number. Of sessions of other roles, a role
// without pg_read_all_stats sees id and user. List asks over one connection of db, and waits
// for nothing but that. It is safe for concurrent use.
func (b *Backend) List(ctx context.Context, db *sql.DB, keys ...string) ([]sqllock.Holder, error) {
	if db == nil {
		return nil, errors.New("pgadvisory: list: the *sql.DB is nil")
	}
	all, err := list(ctx, db, keys)
	if err != nil {
		return nil, fmt.Errorf("pgadvisory: list: %w", err)
	}
	return all, nil
}

func list(ctx context.Context, db *sql.DB, keys []string) (all []sqllock.Holder, err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()                                                                         //nolint:errcheck // nothing is left on it
	if err := pgsession.Use(conn, func(*pgsession.Session) error { return nil }); err != nil { // it is of another driver
		return nil, err
	}
	rows, err := conn.QueryContext(ctx, listQuery(keys), pgx.QueryExecModeExec)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		h := sqllock.Holder{Alive: true}
		var since sql.NullInt64
		if err := rows.Scan(&h.Key, &h.Session, &h.User, &h.Host, &h.Database, &h.State, &h.Process, &since); err != nil {
			return nil, err
		}
		if since.Valid {
			h.Since = time.Unix(since.Int64, 0)
		}
		all = append(all, h)
	}
	return all, rows.Err()
}

// BreakHolder is Break for whom Holder or List has told of, and for nobody else, not for
// those who share the lock either: it returns ErrNotHeld if that session does not hold
// h.Key any more. Key is the name, and not the number that List may have told.
func (b *Backend) BreakHolder(ctx context.Context, db *sql.DB, h sqllock.Holder) error {
	if db == nil {
		return errors.New("the *sql.DB is nil")
	}
	var told sql.NullBool
	err := pgsession.AskOver(ctx, db, breakOneQuery(h.Key, h.Session), &told)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("%w by session %d any more", sqllock.ErrNotHeld, h.Session)
	case pgsession.Code(err) == pgsession.NoPrivilege:
		return errPrivilege(fmt.Sprintf(" (%d, of %s)", h.Session, h.User), err)
	case err != nil:
		return err
	}
	return b.ended(ctx, db, h.Key, fmt.Sprint(h.Session))
}

// ended waits until none of ids holds key any more.
func (b *Backend) ended(ctx context.Context, db *sql.DB, key, ids string) error {
	var left sql.NullString
	for ids != "" {
		if err := pgsession.AskOver(ctx, db, stillQuery(key, ids), &left); err != nil || left.String == "" {
			return err
		}
		select {
		case <-time.After(breakPause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w: session %s", context.Cause(ctx), sqllock.ErrHolderAlive, left.String)
		}
	}
	return nil
}
