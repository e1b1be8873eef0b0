// Command demo plays the case that locks are needed for most often: a job that
// cron starts on every web server, and that must run once.
//
// The web servers are processes of the operating system, which fire the monthly
// invoice job at one moment against one database. The one that got the lock is
// killed half-way by SIGKILL; the next firing takes over. Then the same runs
// without the lock.
//
// The database is the one that the environment variable DSN names, or an
// in-process one.
package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver called pgx
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/inprocess"
)

// What the director tells its web servers by way of the environment.
const (
	nameEnv = "SQLLOCK_DEMO_WEB_SERVER"
	dsnEnv  = "SQLLOCK_DEMO_DSN"
	likeEnv = "SQLLOCK_DEMO_LOOKALIKE"

	tableEnv = "SQLLOCK_DEMO_TABLE"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	var err error
	if name := os.Getenv(nameEnv); name != "" {
		err = webServer(ctx, name, os.Getenv(dsnEnv), os.Getenv(tableEnv), os.Stdin, os.Stdout)
	} else {
		err = demo(ctx, os.Getenv("DSN"), os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// isPostgres tells the servers apart by the DSN.
func isPostgres(dsn string) bool {
	return strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
}

// open opens a pool on the database of dsn.
func open(dsn string) (*sql.DB, error) {
	if isPostgres(dsn) {
		return sql.Open("pgx", dsn)
	}
	return sql.Open("mysql", dsn)
}

// newLocker returns what the web servers and the director use on the database of dsn.
func newLocker(dsn string) *sqllock.Locker {
	var backend sqllock.Backend = pgadvisory.New()
	if !isPostgres(dsn) {
		var opts []mysqlnamed.Option
		if os.Getenv(likeEnv) != "" {
			opts = append(opts, mysqlnamed.Allow(mysqlnamed.Lookalike))
		}
		backend = mysqlnamed.New(opts...)
	}
	return sqllock.New(backend, sqllock.WithNamespace("sqllock-demo"))
}

// place is the database that the demo plays in.
type place struct {
	dsn      string // with a default database
	what     string // for people
	inMemory bool   // not a real server
	cleaning func() error
}

// ownName is a name that nobody else has: what the demo makes, and nothing else,
// it drops.
func ownName() string { return "sqllock_demo_" + strings.ToLower(rand.Text()[:10]) }

// findPlace opens the user's database, or starts one.
func findPlace(ctx context.Context, dsn string) (*place, error) {
	if dsn == "" {
		dsn, stop, err := inprocess.Start(ctx)
		if err != nil {
			return nil, err
		}
		what := "an in-process MySQL (go-mysql-server); DSN='user:password@tcp(127.0.0.1:3306)/database' or DSN='postgres://…' takes your own server"
		return &place{dsn: dsn, what: what, inMemory: true, cleaning: stop}, os.Setenv(likeEnv, "1")
	}
	if isPostgres(dsn) {
		return findPostgres(ctx, dsn)
	}
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, fmt.Errorf("the DSN in the environment: %w (it looks like user:password@tcp(127.0.0.1:3306)/database, or postgres://…)", err)
	}
	p := &place{cleaning: func() error { return nil }}
	if cfg.DBName == "" {
		// Without a database in it the DSN is of somebody who may make one.
		db, err := sql.Open("mysql", dsn)
		if err != nil {
			return nil, err
		}
		if err := db.PingContext(ctx); err != nil {
			return nil, fmt.Errorf("the server of the DSN can't be reached: %w", err)
		}
		cfg.DBName = ownName()
		if _, err := db.ExecContext(ctx, "CREATE DATABASE "+cfg.DBName); err != nil {
			return nil, fmt.Errorf("the DSN names no database, and making one failed: %w", err)
		}
		p.cleaning = func() error {
			_, err := db.ExecContext(context.WithoutCancel(ctx), "DROP DATABASE "+cfg.DBName)
			_ = db.Close()
			return err
		}
	}
	p.dsn = cfg.FormatDSN()
	p.what = fmt.Sprintf("your server at %s, database %s", cfg.Addr, cfg.DBName)
	return p, nil
}

// findPostgres plays in the database of the DSN, which a PostgreSQL always has.
func findPostgres(ctx context.Context, dsn string) (*place, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("the DSN in the environment: %w", err)
	}
	db, err := open(dsn)
	if err != nil {
		return nil, err
	}
	defer db.Close() //nolint:errcheck // only a ping
	if err := db.PingContext(ctx); err != nil {
		return nil, fmt.Errorf("the server of the DSN can't be reached: %w", err)
	}
	what := fmt.Sprintf("your server at %s:%d, database %s", cfg.Host, cfg.Port, cfg.Database)
	return &place{dsn: dsn, what: what, cleaning: func() error { return nil }}, nil
}
