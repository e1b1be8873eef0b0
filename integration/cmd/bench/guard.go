package main

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// guardRows are about package txguard: a transaction around one UPDATE, against the
// same one without a guard.
func guardRows() []row {
	atMost := func(ratio float64) *float64 { return &ratio }
	return []row{
		{"guarded transaction, mysqlnamed / the same one unguarded", atMost(1.5), guard("MyISAM", mysqlnamed.New())},
		{"guarded transaction, table on MyISAM / the same one unguarded", atMost(1.5), guard("MyISAM", table.New(time.Hour))},
		{"guarded transaction, table on InnoDB / the same one unguarded", atMost(1.5), guard("InnoDB", table.New(time.Hour))},
		{"guarded transaction with evidence, mysqlnamed / the same one unguarded", nil, guard("MyISAM", mysqlnamed.New(), evidence)},
		{"fenced transaction, table / the same one unguarded on a connection of the pool", nil, fenced},
	}
}

func evidence(db *sql.DB) txguard.Option { return txguard.WithEvidence(txguard.NewFence(db)) }

// withWork is withTable with a lock that is held, fences, and a row to update.
func withWork(ctx context.Context, s *testdb.Server, engine string, backend sqllock.Backend, f func(b *bench, lock *sqllock.Lock) (result, error)) (result, error) {
	return withTable(ctx, s, engine, func(b *bench) (res result, err error) {
		if err := migrations.Up(ctx, b.db, migrations.Fences()); err != nil {
			return result{}, err
		}
		for _, query := range []string{
			"CREATE TABLE work (id bigint NOT NULL PRIMARY KEY, n bigint NOT NULL) ENGINE=InnoDB",
			"INSERT INTO work VALUES (1,0)",
		} {
			if err := exec(ctx, b.conn, query); err != nil {
				return result{}, err
			}
		}
		lock, err := sqllock.New(backend).Lock(ctx, b.conn, name)
		if err != nil {
			return result{}, err
		}
		defer func() { err = errors.Join(err, lock.Release(ctx)) }()
		return f(b, lock)
	})
}

func update(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, "UPDATE work SET n=n+1 WHERE id=1")
	return err
}

// unguarded is what programs do.
func unguarded(ctx context.Context, begin func(context.Context, *sql.TxOptions) (*sql.Tx, error)) error {
	tx, err := begin(ctx, nil)
	if err != nil {
		return err
	}
	if err := update(ctx, tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func guard(engine string, backend sqllock.Backend, opts ...func(*sql.DB) txguard.Option) func(context.Context, *testdb.Server) (result, error) {
	return func(ctx context.Context, s *testdb.Server) (result, error) {
		return withWork(ctx, s, engine, backend, func(b *bench, lock *sqllock.Lock) (result, error) { return b.guarded(lock, opts) })
	}
}

func (b *bench) guarded(lock *sqllock.Lock, opts []func(*sql.DB) txguard.Option) (result, error) {
	var options []txguard.Option
	for _, o := range opts {
		options = append(options, o(b.db))
	}
	return b.versus(
		tableTurns,
		func() error { return txguard.Run(b.ctx, lock, update, options...) },
		func() error { return unguarded(b.ctx, b.conn.BeginTx) },
		"unguarded:",
	)
}

func fenced(ctx context.Context, s *testdb.Server) (result, error) {
	return withWork(ctx, s, "MyISAM", table.New(time.Hour), (*bench).fenced)
}

func (b *bench) fenced(lock *sqllock.Lock) (result, error) {
	f, err := txguard.NewFence(b.db).Raise(b.ctx, lock)
	if err != nil {
		return result{}, err
	}
	return b.versus(
		tableTurns,
		func() error { return f.Run(b.ctx, update) },
		func() error { return unguarded(b.ctx, b.db.BeginTx) },
		"unguarded:",
	)
}
