// Package server opens the database of the examples, which run on MySQL, MariaDB and
// PostgreSQL alike, whichever the environment variable DSN names. An application has one
// of them, and these lines in place of this package:
//
//	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
//	locks := mysqlnamed.New()
//	leases := table.New(ttl, table.WithPool(db))
//
// or, on PostgreSQL:
//
//	db, err := sql.Open("pgx", "postgres://user:password@127.0.0.1/shop")
//	locks := pgadvisory.New()
//	leases := pgtable.New(ttl, pgtable.WithPool(db))
package server

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	_ "github.com/go-sql-driver/mysql" // the driver called mysql
	_ "github.com/jackc/pgx/v5/stdlib" // the driver called pgx

	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
)

// Server is the database.
type Server struct {
	DB       *sql.DB
	Without  bool // the control: do without the lock, or whatever the example is about
	pause    time.Duration
	postgres bool
}

// Table is one that an example works on.
type Table struct {
	Name, Columns string
	Rows          string // what an empty one gets, so that there is something to do
}

// Main parses the flags, and runs a program until it is done, or SIGINT or SIGTERM ends its
// ctx. what is that which -without does without.
func Main(what string, run func(ctx context.Context, s *Server) error) {
	without := flag.Bool("without", false, "do without "+what+", to see what happens then")
	pause := flag.Duration("pause", 0, "how long each piece of work takes, for who wants to watch")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := open(ctx, *without, *pause, run)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func open(ctx context.Context, without bool, pause time.Duration, run func(ctx context.Context, s *Server) error) (err error) {
	dsn := os.Getenv("DSN")
	if dsn == "" {
		return errors.New("set DSN to a database: user:password@tcp(127.0.0.1:3306)/shop, or postgres://user:password@127.0.0.1/shop")
	}
	s := &Server{Without: without, pause: pause, postgres: strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")}
	driver := "mysql"
	if s.postgres {
		driver = "pgx"
	}
	if s.DB, err = sql.Open(driver, dsn); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.DB.Close()) }()
	return run(ctx, s)
}

// Locks is the backend of locks that end with their session.
func (s *Server) Locks() sqllock.Backend {
	if s.postgres {
		return pgadvisory.New()
	}
	return mysqlnamed.New()
}

// Leases is the backend of locks that also end when ttl is over.
func (s *Server) Leases(ttl time.Duration) sqllock.Backend {
	if s.postgres {
		return pgtable.New(ttl, pgtable.WithPool(s.DB))
	}
	return table.New(ttl, table.WithPool(s.DB))
}

// Prepare makes the tables of the library, and those of the example. It does so under a
// lock, since several processes begin with it at the same time.
func (s *Server) Prepare(ctx context.Context, tables ...Table) error {
	var opts []migrations.Option
	if s.postgres {
		opts = append(opts, migrations.Postgres())
	}
	if err := migrations.Up(ctx, s.DB, opts...); err != nil {
		return err
	}
	if err := migrations.Up(ctx, s.DB, append(opts, migrations.Fences())...); err != nil {
		return err
	}
	locker := sqllock.New(s.Locks(), sqllock.WithNamespace("examples"))
	return locker.Do(ctx, s.DB, "prepare", func(ctx context.Context, _ *sqllock.Lock) error {
		for _, t := range tables {
			if err := s.make(ctx, t); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Server) make(ctx context.Context, t Table) error {
	if _, err := s.DB.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS "+t.Name+" ("+t.Columns+")"); err != nil {
		return err
	}
	n, err := s.Numbers(ctx, s.DB, "SELECT COUNT(*) FROM "+t.Name)
	if err != nil || n[0] > 0 {
		return err
	}
	_, err = s.DB.ExecContext(ctx, "INSERT INTO "+t.Name+" VALUES "+t.Rows)
	return err
}

// Work is a piece of work, which takes as long as -pause says.
func (s *Server) Work(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(s.pause):
		return nil
	}
}

// SQL is a statement with the placeholders of the server: ? is $1, $2 and so on for
// PostgreSQL.
func (s *Server) SQL(statement string) string {
	if !s.postgres {
		return statement
	}
	var b strings.Builder
	for i, part := range strings.Split(statement, "?") {
		if i > 0 {
			b.WriteString("$" + strconv.Itoa(i))
		}
		b.WriteString(part)
	}
	return b.String()
}

// Numbers returns what a query has in its only column.
func (s *Server) Numbers(ctx context.Context, q interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}, query string, args ...any,
) (numbers []int64, err error) {
	rows, err := q.QueryContext(ctx, s.SQL(query), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		numbers = append(numbers, n)
	}
	return numbers, rows.Err()
}
