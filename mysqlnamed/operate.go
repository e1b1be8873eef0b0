package mysqlnamed

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

var _ sqllock.Breaker = (*Backend)(nil)

// breakPause is between two looks at a session that is to end.
const breakPause = 10 * time.Millisecond

// Break ends the session that holds key by KILL, and returns whom it ended when the lock
// is free of that session, which takes as long as the rollback. It returns ErrNotHeld,
// ErrPermission, or, when ctx ends first, ErrHolderAlive: then the session may have been
// told to end. Its other locks end with it. It is safe for concurrent use. Do not call it
// over a pool that has a connection with the lock in it, which might break its own.
func (b *Backend) Break(ctx context.Context, db *sql.DB, key string) (sqllock.Holder, error) {
	return b.breakUp(ctx, db, key, 0)
}

// BreakHolder is Break for whom Holder or List has told of, and for nobody else: it
// returns ErrNotHeld if that session does not hold h.Key any more.
func (b *Backend) BreakHolder(ctx context.Context, db *sql.DB, h sqllock.Holder) error {
	_, err := b.breakUp(ctx, db, h.Key, h.Session)
	return err
}

// breakUp is Break for session only, if that is not 0.
func (b *Backend) breakUp(ctx context.Context, db *sql.DB, key string, only int64) (sqllock.Holder, error) {
	if db == nil {
		return sqllock.Holder{}, errors.New("the *sql.DB is nil")
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return sqllock.Holder{}, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left on it
	var whom sqllock.Holder
	for {
		h, err := b.Holder(ctx, conn, key)
		free := errors.Is(err, sqllock.ErrNotHeld)
		switch {
		case err != nil && !free:
			return sqllock.Holder{}, err
		case whom.Session != 0 && h.Session != whom.Session:
			return whom, nil
		case free:
			return sqllock.Holder{}, err
		case only != 0 && h.Session != only:
			return sqllock.Holder{}, fmt.Errorf("%w by session %d any more, but by session %d", sqllock.ErrNotHeld, only, h.Session)
		case whom.Session == 0:
			told, err := end(ctx, conn, h)
			if err != nil {
				return sqllock.Holder{}, err
			}
			if told {
				whom = h
			}
		}
		select {
		case <-time.After(breakPause):
		case <-ctx.Done():
			return sqllock.Holder{}, fmt.Errorf("%w: %w: session %d", context.Cause(ctx), sqllock.ErrHolderAlive, h.Session)
		}
	}
}

// end tells the session of h to end, unless it has just let go, or is known no more while
// it rolls back.
func end(ctx context.Context, conn *sql.Conn, h sqllock.Holder) (told bool, err error) {
	err = userlock.Use(conn, func(s *session.Session) error {
		_, err := userlock.Exec(ctx, s, killQuery(h))
		return err
	})
	switch {
	case err == nil:
		return true, nil
	case userlock.Number(err) == userlock.UnknownThread:
		return false, nil
	}
	return false, userlock.ErrKill("the holder", h.Session, err)
}

// List tells of every user-level lock of the server that somebody holds, of this package
// or not, the doorbells of package table among them, in no order. MySQL tells names in
// lower case. It reads performance_schema.metadata_locks: its errors
// match ErrPermission where the user may not, and ErrUnsupported where the server keeps no
// record, as MariaDB does not by default; Holder tells of one lock without that.
// It asks over connections of db, and waits for nothing but them. It is safe for
// concurrent use.
func (b *Backend) List(ctx context.Context, db *sql.DB) ([]sqllock.Holder, error) {
	if db == nil {
		return nil, errors.New("mysqlnamed: list: the *sql.DB is nil")
	}
	if err := recorded(ctx, db); err != nil {
		return nil, fmt.Errorf("mysqlnamed: list: %w", err)
	}
	all, err := list(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("mysqlnamed: list: %w", explainList(err))
	}
	return all, nil
}

// recorded returns an error if the server keeps no record of locks.
func recorded(ctx context.Context, db *sql.DB) error {
	var on, instrument sql.NullString
	if err := userlock.AskOver(ctx, db, "SELECT @@performance_schema v", &on); err != nil {
		return err
	}
	if on.String != "1" {
		return fmt.Errorf("%w: performance_schema is off on this server, and nothing else lists user-level locks; it takes performance_schema=ON, "+
			"and performance_schema_instrument='wait/lock/metadata/sql/mdl=ON', in the server's configuration", sqllock.ErrUnsupported)
	}
	err := userlock.AskOver(ctx, db, instrumentQuery, &instrument)
	switch {
	case err != nil:
		return explainList(err)
	case instrument.String == "NO":
		return fmt.Errorf("%w: the server keeps no record of user-level locks: UPDATE performance_schema.setup_instruments SET enabled='YES' "+
			"WHERE name='wait/lock/metadata/sql/mdl' has it record those that are acquired from then on", sqllock.ErrUnsupported)
	}
	return nil
}

func list(ctx context.Context, db *sql.DB) (all []sqllock.Holder, err error) {
	rows, err := db.QueryContext(ctx, listQuery)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		h := sqllock.Holder{Alive: true}
		var since sql.NullInt64
		if err := rows.Scan(&h.Key, &h.Session, &h.User, &h.Host, &h.Database, &h.State, &since); err != nil {
			return nil, err
		}
		if since.Valid {
			h.Since = time.Unix(since.Int64, 0)
		}
		all = append(all, h)
	}
	return all, rows.Err()
}

// explainList adds what to grant.
func explainList(err error) error {
	switch userlock.Number(err) {
	case 1142, 1143, 1044, 1227: // ER_TABLEACCESS_DENIED_ERROR and the like
		return fmt.Errorf("%w: it needs GRANT SELECT ON performance_schema.* to list user-level locks: %w", sqllock.ErrPermission, err)
	}
	return err
}
