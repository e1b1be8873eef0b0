package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/pressly/goose/v3"
)

// Up brings the lock table, or with [Fences] the fence table, to the newest version,
// from whichever version it has, and returns nil only if the table is there and fit
// for locks, or fences. On a table that is up to date it reads, two statements (on
// PostgreSQL three) without a lock, and changes nothing.
//
// Up waits, as long as ctx allows, for others who migrate the same table, and
// for transactions that use it. It needs one connection of db at a time, so a
// pool of one will do. It is safe for concurrent use, in any number of processes.
//
// Errors match the errors of ctx, of the driver (*mysql.MySQLError, *pgconn.PgError)
// and of package sqllock, among them [sqllock.ErrUnsupported] for servers that package
// mysqlnamed, or pgadvisory, refuses. A table of that name that is not a lock table, or with Fences
// not a fence table, is an error, and is not altered. After an error the table has
// the old version, the new one, or one between, all of which locks survive; call Up
// again. If ctx ends while a statement waits for the server, the connection is
// closed, and the server may still run that statement afterwards, which does no
// harm.
func Up(ctx context.Context, db *sql.DB, opts ...Option) error {
	return explain(ctx, "up", run(ctx, db, opts, (*config).up))
}

// Down takes the migrations back: it drops a table that they have created, with
// the locks in it, or with [Fences] the fences, and removes the columns that they
// have added from one that was there before, which stays with its rows and its
// present engine. It drops the version table as well, and on PostgreSQL the sequence
// that they have created. Where there is no version
// table it does nothing, even if there is a lock table, or a fence table. A table
// that they have created without Fences is refused with it, and the other way round.
//
// What blocks, what errors say, and concurrency are as with [Up]. After an error
// some of it may have been done; call Down again.
func Down(ctx context.Context, db *sql.DB, opts ...Option) error {
	return explain(ctx, "down", run(ctx, db, opts, (*config).down))
}

func run(ctx context.Context, db *sql.DB, opts []Option, way func(*config, context.Context, *sql.DB) error) error {
	if db == nil {
		return errors.New("the *sql.DB is nil")
	}
	c, err := configure(opts)
	if err != nil {
		return err
	}
	return c.advise(way(c, ctx, db))
}

func (c *config) up(ctx context.Context, db *sql.DB) error {
	versions, err := c.versions(ctx, db)
	if err != nil {
		return err
	}
	p, err := c.provider(db, versions, func(ctx context.Context, conn *sql.Conn) error {
		if err := c.adoptable(ctx, conn); err != nil {
			return err
		}
		if err := c.creatable(ctx, conn); err != nil {
			return err
		}
		return versions.create(ctx, conn)
	})
	if err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return err
	}
	return c.complete(ctx, db)
}

func (c *config) down(ctx context.Context, db *sql.DB) error {
	versions, err := c.versions(ctx, db)
	if err != nil {
		return err
	}
	p, err := c.provider(db, versions, func(ctx context.Context, conn *sql.Conn) error {
		_, err := c.look(ctx, conn)
		return err
	})
	if err != nil {
		return err
	}
	_, err = p.DownTo(ctx, 0)
	return err
}

// provider returns a provider that has prepare called under the lock, before
// anything else is done under it. It must not be closed, which would close db.
func (c *config) provider(db *sql.DB, versions store, prepare func(context.Context, *sql.Conn) error) (*goose.Provider, error) {
	files, err := c.files()
	if err != nil {
		return nil, err
	}
	p, err := goose.NewProvider(
		goose.DialectCustom, db, files,
		goose.WithStore(versions),
		goose.WithSessionLocker(&guard{config: c, prepare: prepare}),
		goose.WithDisableGlobalRegistry(true), // those of the application
		goose.WithLogger(goose.NopLogger()),
	)
	if err != nil {
		return nil, fmt.Errorf("goose: %w", err)
	}
	return p, nil
}
