package gooselock_test

import (
	"context"
	"database/sql"
	"embed"
	"io/fs"
	"log"

	"github.com/pressly/goose/v3"

	"github.com/sqllock/go-sqllock/adapter/gooselock"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"
)

var embedded embed.FS // with a go:embed directive: the folder of the migrations

// Every process of the application may do this when it starts.
func Example() {
	migrate := func(ctx context.Context, db *sql.DB, files fs.FS) error {
		locker := sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("shop"))
		provider, err := goose.NewProvider(goose.DialectMySQL, db, files,
			goose.WithSessionLocker(gooselock.New(locker, "migrations")),
		)
		if err != nil {
			return err
		}
		if _, err := provider.GetDBVersion(ctx); err != nil { // on an empty database: goose's own table, under the lock
			return err
		}
		_, err = provider.Up(ctx)
		return err
	}
	if err := migrate(context.Background(), openMySQL(), embedded); err != nil {
		log.Print(err)
	}
}

// On PostgreSQL, in place of goose's own locker.
func Example_postgres() {
	db := openPostgres()
	locker := sqllock.New(pgadvisory.New(), sqllock.WithNamespace("shop"))
	provider, err := goose.NewProvider(goose.DialectPostgres, db, embedded,
		goose.WithSessionLocker(gooselock.New(locker, "migrations")),
	)
	if err != nil {
		log.Print(err)
		return
	}
	ctx := context.Background()
	if _, err := provider.GetDBVersion(ctx); err != nil {
		log.Print(err)
		return
	}
	if _, err := provider.Up(ctx); err != nil {
		log.Print(err)
	}
}

func openMySQL() *sql.DB {
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	return db
}

func openPostgres() *sql.DB {
	db, err := sql.Open("pgx", "postgres://user:password@127.0.0.1:5432/shop")
	if err != nil {
		log.Fatal(err)
	}
	return db
}
