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
	var engine, odd, database, version, kind sql.NullString
	var needed, added sql.NullInt64
	if err := ask(shape(schema, name), &engine, &needed, &added, &odd, &database, &version, &kind); err != nil {
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
	case needed.Int64 == 0 && engine.String == "" && !database.Valid:
		return nil, errNoDatabase()
	case needed.Int64 == 0 && engine.String == "":
		return nil, b.errNoTable("there is no table " + b.name + " that this user can see")
	case needed.Int64 != 5:
		return nil, fmt.Errorf("%w: table %s is not one of locks: it lacks some of the columns name, connection_id, created, ttl, "+
			"lock_acquired; name another one by table.WithTable", sqllock.ErrNoTable, b.name)
	case odd.String != "":
		return nil, fmt.Errorf("%w: table %s has a column %s that no lock fills, or whose AUTO_INCREMENT would be taken for "+
			"a fencing token; give it a default, or name another table by table.WithTable", sqllock.ErrNoTable, b.name, odd.String)
	case !srv.queries.migrated && !b.unmigrated:
		return nil, fmt.Errorf("%w: table %s has no columns token and holder: run %s, which adds them and keeps its rows, "+
			"or do without them by table.AllowUnmigrated()", sqllock.ErrNoTable, b.name, b.up())
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
	open, err = userlock.InTransactionMySQL(ctx, s) // the next transaction is our own statement
	return open, own.Int64, err
}

// How long to wait for a connection of the pool: where nothing else will do, and
// where the session of the lock may do as well.
const (
	poolTime  = userlock.AnswerTime
	spareTime = 250 * time.Millisecond
)

// overPool changes rows on another session than that of the lock.
func (b *Backend) overPool(ctx context.Context, patience time.Duration, query string) (res result, err error) {
	err = b.withPool(ctx, patience, func(s *session.Session) (err error) {
		res, err = userlock.Exec(ctx, s, query)
		return b.explain(err)
	})
	return res, err
}

// withPool runs f on a session of the pool. What becomes of that session says
// nothing about the session of the lock, so neither does the error.
func (b *Backend) withPool(ctx context.Context, patience time.Duration, f func(*session.Session) error) error {
	for try := 1; ; try++ {
		conn, err := session.Spare(ctx, "table", b.pool, patience)
		if err != nil {
			return err
		}
		err = session.Use(conn, f)
		gone := errors.Is(err, sqllock.ErrSessionGone)
		if gone {
			_ = session.Close(conn)
		}
		_ = conn.Close() // one that was closed says so
		switch {
		case gone && userlock.NotSent(err) && try < 3: // a dead connection of the pool
		case gone:
			return fmt.Errorf("over the pool of table.WithPool: %v", err) //nolint:errorlint // see above
		case errors.Is(err, sqllock.ErrNoTable):
			return fmt.Errorf("over the pool of table.WithPool, which must lead to the same server and default database: %w", err)
		default:
			return err
		}
	}
}

// repair repairs the table, once for all that find it damaged at a time.
func (b *Backend) repair(ctx context.Context, req sqllock.Request, cause error) error {
	quoted, _, _ := quote(b.name)
	if b.pool == nil {
		return fmt.Errorf("the lock table is damaged: run REPAIR TABLE %s, or give the backend a pool "+
			"(table.WithPool), over which it does: %w", b.name, cause)
	}
	conn, err := session.Spare(ctx, "table", b.pool, poolTime)
	if err != nil {
		return fmt.Errorf("the lock table is damaged, and it can't be repaired: %w: %w", err, cause)
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
