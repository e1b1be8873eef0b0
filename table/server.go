package table

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

// result is what a statement that changes rows answers, over the pool or not.
type result interface {
	RowsAffected() (int64, error)
	LastInsertId() (int64, error)
}

func unhex(s string) string {
	b, _ := hex.DecodeString(s) // the server's HEX makes nothing else
	return string(b)
}

// admit looks at the server and the table of a session of a new kind.
func (a *attempt) admit(ctx context.Context) error {
	version, err := userlock.Look(ctx, a.s, a.b.allowed, "table")
	if err != nil {
		return err
	}
	srv, err := a.b.shape(func(query string, dest ...sql.Scanner) error { return userlock.Ask(ctx, a.s, query, dest...) })
	if err != nil {
		return err
	}
	srv.version = version
	a.b.admitted.Put(srv.kind, srv)
	a.b.last.Store(srv)
	a.srv = srv
	return nil
}

// shape looks at the table.
func (b *Backend) shape(ask func(query string, dest ...sql.Scanner) error) (*server, error) {
	quoted, schema, name := quote(b.name)
	var engine, where, version, kind sql.NullString
	var needed, added sql.NullInt64
	if err := ask(shape(schema, name), &engine, &needed, &added, &where, &version, &kind); err != nil {
		return nil, b.explain(err)
	}
	srv := &server{
		kind: kind.String, version: version.String,
		queries: queries{table: quoted, migrated: added.Int64 == 2},
	}
	switch strings.ToLower(engine.String) {
	case "myisam", "aria", "memory":
	default:
		srv.transactional = true
	}
	switch {
	case needed.Int64 == 0:
		return nil, b.errNoTable("there is no table " + b.name + " that this user can see")
	case needed.Int64 != 5:
		return nil, b.errNoTable("table " + b.name + " has not the columns of a lock table")
	case !srv.queries.migrated && !b.unmigrated:
		return nil, b.errNoTable("table " + b.name + " has no columns token and holder yet; " +
			"table.AllowUnmigrated() does without them")
	}
	return srv, nil
}

// inside reports whether the session is in a transaction, or would begin one by a
// statement (autocommit is off), and its id.
func inside(ctx context.Context, s *session.Session, srv *server) (open bool, id int64, err error) {
	in := "0"
	mariadb := userlock.IsMariaDB(srv.version)
	if mariadb {
		in = "@@in_transaction"
	}
	var answer sql.NullBool
	var own sql.NullInt64
	err = userlock.Ask(ctx, s, "SELECT "+in+"<>0 OR @@autocommit=0 v,CONNECTION_ID() c", &answer, &own)
	if err != nil || answer.Bool || mariadb || !srv.transactional {
		return answer.Bool, own.Int64, err
	}
	// MySQL says it only by refusing this. Where it does not, it is about the
	// next transaction, which is our own statement.
	_, err = userlock.Exec(ctx, s, "SET TRANSACTION READ WRITE")
	if userlock.Number(err) == 1568 { // ER_CANT_CHANGE_TX_CHARACTERISTICS
		return true, own.Int64, nil
	}
	return false, own.Int64, err
}

// overPool changes rows on another session than that of the lock.
func (b *Backend) overPool(ctx context.Context, query string) (res result, err error) {
	err = b.withPool(ctx, func(s *session.Session) (err error) {
		res, err = userlock.Exec(ctx, s, query)
		return b.explain(err)
	})
	return res, err
}

// withPool runs f on a session of the pool. An error that the session is gone is
// not about the session of the lock, and says so.
func (b *Backend) withPool(ctx context.Context, f func(*session.Session) error) error {
	ctx, cancel := context.WithTimeout(ctx, userlock.AnswerTime)
	defer cancel()
	for try := 1; ; try++ {
		conn, err := b.pool.Conn(ctx)
		if err != nil {
			if s := b.pool.Stats(); s.MaxOpenConnections > 0 && s.InUse >= s.MaxOpenConnections {
				return fmt.Errorf("the pool of table.WithPool had no connection to spare: all %d (MaxOpenConns) were in use: %w",
					s.MaxOpenConnections, err)
			}
			return fmt.Errorf("no connection from the pool of table.WithPool: %w", err)
		}
		err = session.Use(conn, f)
		gone := errors.Is(err, sqllock.ErrSessionGone)
		if gone {
			_ = session.Close(conn)
		}
		_ = conn.Close() // one that was closed says so
		if gone && userlock.NotSent(err) && try < 3 {
			continue // a dead connection of the pool
		}
		if gone {
			return fmt.Errorf("over the pool of table.WithPool: %v", err) //nolint:errorlint // see above
		}
		return err
	}
}

// repair repairs the table, once for all that find it damaged at a time.
func (b *Backend) repair(ctx context.Context, req sqllock.Request, cause error) error {
	quoted, _, _ := quote(b.name)
	if b.pool == nil {
		return fmt.Errorf("the lock table is damaged: run REPAIR TABLE %s, or give the backend a pool "+
			"(table.WithPool), over which it does: %w", b.name, cause)
	}
	conn, err := b.pool.Conn(ctx)
	if err != nil {
		return fmt.Errorf("the lock table is damaged, and the pool of table.WithPool has no connection to repair it: %w: %w", err, cause)
	}
	defer conn.Close() //nolint:errcheck // nothing is left on it
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	doorbell := text("sqllock-repair " + b.name)
	var mine sql.NullInt64
	if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK("+doorbell+",30)").Scan(&mine); err != nil || mine.Int64 != userlock.Granted {
		return errors.Join(fmt.Errorf("the lock table is damaged, and somebody else has been repairing it for long: %w", cause), err)
	}
	defer conn.ExecContext(context.WithoutCancel(ctx), "DO RELEASE_LOCK("+doorbell+")") //nolint:errcheck // it ends with the session, too
	var said string
	for i, statement := range []string{"CHECK TABLE %s QUICK", "REPAIR NO_WRITE_TO_BINLOG TABLE %s", "REPAIR NO_WRITE_TO_BINLOG TABLE %s USE_FRM"} {
		var ok bool
		if ok, said, err = maintain(ctx, conn, fmt.Sprintf(statement, quoted)); err != nil {
			return b.explain(err)
		}
		if ok {
			if i > 0 { // else somebody else has repaired it
				req.Observe(sqllock.Event{Kind: sqllock.Repaired, Err: cause})
			}
			return nil
		}
	}
	return fmt.Errorf("the lock table %s is damaged, and REPAIR TABLE failed (%s): %w", b.name, said, cause)
}

// maintain runs CHECK or REPAIR TABLE, and reports whether the table is all right.
func maintain(ctx context.Context, conn *sql.Conn, statement string) (ok bool, said string, err error) {
	rows, err := conn.QueryContext(ctx, statement)
	if err != nil {
		return false, "", err
	}
	defer rows.Close()
	for rows.Next() {
		var table, op, kind string
		if err := rows.Scan(&table, &op, &kind, &said); err != nil {
			return false, "", err
		}
		ok = kind == "status" && said == "OK"
	}
	return ok, said, rows.Err()
}
