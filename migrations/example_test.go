package migrations_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/sqllock/go-sqllock/migrations"
)

// Every process of the application may do this when it starts.
func Example() {
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := migrations.Up(ctx, db); err != nil {
		log.Print(err)
	}
}

// The fence table of package txguard, in the database where the work is done.
func ExampleFences() {
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := migrations.Up(ctx, db, migrations.Fences()); err != nil {
		log.Print(err)
	}
}

// Both tables on PostgreSQL.
func ExamplePostgres() {
	db, err := sql.Open("pgx", "postgres://user:password@127.0.0.1:5432/shop")
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := migrations.Up(ctx, db, migrations.Postgres()); err != nil {
		log.Print(err)
	}
	if err := migrations.Up(ctx, db, migrations.Postgres(), migrations.Fences()); err != nil {
		log.Print(err)
	}
}

// The statements for another tool, here for a server where every table needs a
// primary key.
func ExampleSQL() {
	text, err := migrations.SQL(migrations.WithTable("billing_locks"), migrations.WithEngine("InnoDB"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(text)
}
