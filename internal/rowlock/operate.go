package rowlock

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sqllock/go-sqllock/sqllock"
)

// held is a row of queries.holders.
type held struct {
	name, token           sql.NullString
	left, expires, locked sql.NullInt64
}

func (h *held) dest() []sql.Scanner {
	return []sql.Scanner{&h.name, &h.token, &h.left, &h.expires, &h.locked}
}

func (b *Backend) holder(key string, h *held) sqllock.Holder {
	out := sqllock.Holder{
		Key: key, Process: b.format.Process(h.token.String), Alive: true,
		Expires: time.UnixMicro(h.expires.Int64), TimeLeft: micros(h.left.Int64),
	}
	if h.locked.Valid {
		out.Since = time.UnixMicro(h.locked.Int64)
	}
	return out
}

// Holder tells what the row of key says, whoever has made it. One whose time is over holds
// nothing.
func (b *Backend) Holder(ctx context.Context, q sqllock.Querier, key string) (sqllock.Holder, error) {
	h, err := b.look(ctx, q, key)
	if err != nil {
		return sqllock.Holder{}, err
	}
	return b.holder(key, h), nil
}

// spared is a session that nobody has, so that the end of a ctx may cost it.
type spared struct{ *sql.Conn }

func (b *Backend) look(ctx context.Context, q sqllock.Querier, key string) (*held, error) {
	id, err := b.id(key)
	if err != nil {
		return nil, err
	}
	h := new(held)
	ask := func(of, over sqllock.Querier) error {
		qs, err := b.queriesOf(ctx, of)
		if err != nil {
			return err
		}
		return qs.explain(qs.askOver(ctx, over, qs.holders(id), h.dest()...))
	}
	switch q := q.(type) {
	case *sql.Tx:
		err = ask(q, q)
	case *sql.DB:
		var conn *sql.Conn
		if conn, err = q.Conn(ctx); err == nil {
			err = ask(conn, spared{conn})
			_ = conn.Close() // nothing is left on it
		}
	default:
		err = b.over(ctx, q, func(o *on) error { return o.run(ctx, h.dest(), o.q.holders(id)) })
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = fmt.Errorf("%w: it is free", sqllock.ErrNotHeld)
	}
	return h, err
}

// List tells of all rows whose time is not over, ordered by what stands for the name in the
// table.
func (b *Backend) List(ctx context.Context, db *sql.DB) ([]sqllock.Holder, error) {
	fail := func(err error) ([]sqllock.Holder, error) {
		return nil, fmt.Errorf("%s: list: %w", b.format.Package, err)
	}
	if db == nil {
		return fail(errors.New("the *sql.DB is nil"))
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return fail(err)
	}
	defer conn.Close() //nolint:errcheck // nothing is left on it
	q, err := b.queriesOf(ctx, conn)
	if err != nil {
		return fail(err)
	}
	var args []any
	if q.pg {
		args = append(args, pgx.QueryExecModeExec)
	}
	rows, err := conn.QueryContext(ctx, q.holders(""), args...)
	if err != nil {
		return fail(q.explain(err))
	}
	defer rows.Close()
	var all []sqllock.Holder
	for rows.Next() {
		var h held
		if err := rows.Scan(&h.name, &h.token, &h.left, &h.expires, &h.locked); err != nil {
			return fail(err)
		}
		name, err := hex.DecodeString(h.name.String)
		if err != nil {
			return fail(err)
		}
		all = append(all, b.holder(string(name), &h))
	}
	if err := rows.Err(); err != nil {
		return fail(q.explain(err))
	}
	return all, nil
}

// Break frees the row of key, whoever has it, and returns whom it took it from.
func (b *Backend) Break(ctx context.Context, db *sql.DB, key string) (sqllock.Holder, error) {
	if db == nil {
		return sqllock.Holder{}, errors.New("the *sql.DB is nil")
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return sqllock.Holder{}, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left on it
	h, err := b.look(ctx, conn, key)
	if err != nil {
		return sqllock.Holder{}, err
	}
	id, err := b.id(key)
	if err != nil {
		return sqllock.Holder{}, err
	}
	var seen row
	err = b.alone(ctx, conn, func(o *on) (err error) {
		seen, err = o.lookFirst(ctx, id, o.q.free(id, h.token.String))
		return err
	})
	switch {
	case err != nil:
		return sqllock.Holder{}, err
	case seen.token != h.token.String:
		return sqllock.Holder{}, fmt.Errorf("%w: its holder let go of it by itself; ask again who has it now", sqllock.ErrNotHeld)
	}
	return b.holder(key, h), nil
}
