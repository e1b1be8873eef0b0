package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/pgtable"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
)

// connectFlags are those of every command.
func connectFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "dsn", Usage: "`DSN` of the database; better in the environment variable SQLLOCK_DSN, or in a file"},
		&cli.StringFlag{Name: "dsn-file", Usage: "`FILE` with the DSN; SQLLOCK_DSN_FILE names one, too"},
		&cli.StringFlag{Name: "namespace", Usage: "put `NAMESPACE`: before every name, as sqllock.WithNamespace does", Sources: cli.EnvVars("SQLLOCK_NAMESPACE")},
		&cli.StringFlag{Name: "table", Value: defaultTable, Usage: "`NAME` of the table of leases", Sources: cli.EnvVars("SQLLOCK_TABLE")},
		&cli.DurationFlag{Name: "connect-timeout", Value: 10 * time.Second, Usage: "how long to try to connect"},
	}
}

// leases is what package table and pgtable have in common.
type leases interface {
	sqllock.Leaser
	sqllock.Breaker
	List(ctx context.Context, db *sql.DB) ([]sqllock.Holder, error)
	Sweep(ctx context.Context, db *sql.DB) (removed int64, err error)
}

// A server is the database that the locks are in.
type server struct {
	*target
	db        *sql.DB
	namespace string
	sessions  sqllock.Backend // locks of sessions: mysqlnamed or pgadvisory
	leases    leases          // leases: table or pgtable
	migrate   []migrations.Option
}

// defaultTTL is that of the leases backend, where nothing else is said; only run makes
// leases, and always says.
const defaultTTL = time.Minute

// defaultTable is what the migrations make.
const defaultTable = "shared_locks"

// open connects as the flags of cmd say. What is to be seen of us on the server, such as
// by Holder, is program.
func open(ctx context.Context, cmd *cli.Command, program string) (s *server, err error) {
	dsn := handedDSN()
	if dsn == "" {
		if cmd.IsSet("dsn") && cmd.String("dsn") == "" {
			return nil, usage("--dsn is empty: is a variable not set? %s", dsnForms)
		}
		if dsn, err = readDSN(cmd.String("dsn"), cmd.String("dsn-file"), os.Getenv); err != nil {
			return nil, err
		}
		if cmd.IsSet("dsn") {
			hideDSN(dsn, ofTheCommand(cmd))
		}
	}
	t, err := parseDSN(dsn)
	if err != nil {
		return nil, err
	}
	if d := cmd.Duration("connect-timeout"); d <= 0 {
		return nil, usage("--connect-timeout has to be more than 0, and is %v", d)
	}
	s = &server{target: t, namespace: cmd.String("namespace")}
	defer func() {
		// The constructors refuse names of tables by a panic, as for programmers.
		if r := recover(); r != nil {
			s, err = nil, usage("--table: %v", r)
		}
	}()
	name := cmp.Or(cmd.String("table"), defaultTable) // SQLLOCK_TABLE may be empty
	s.migrate = []migrations.Option{migrations.WithTable(name)}
	if t.mysql != nil {
		t.mysql.Logger = &mysql.NopLogger{} // what it has to tell is in errors, too
		if t.mysql.Timeout == 0 {
			t.mysql.Timeout = cmd.Duration("connect-timeout")
		}
		if !strings.Contains(t.mysql.ConnectionAttributes, "program_name") {
			t.mysql.ConnectionAttributes = strings.TrimPrefix(t.mysql.ConnectionAttributes+",program_name:"+strings.NewReplacer(",", " ", ":", " ").Replace(program), ",")
		}
		connector, err := mysql.NewConnector(t.mysql)
		if err != nil {
			return nil, usage("the DSN: %w", err)
		}
		s.db = sql.OpenDB(connector)
		s.sessions = mysqlnamed.New(mysqlnamed.WithControl(s.db))
		s.leases = table.New(defaultTTL, table.WithPool(s.db), table.WithTable(name))
	} else {
		if t.postgres.RuntimeParams["application_name"] == "" {
			t.postgres.RuntimeParams["application_name"] = program
		}
		if t.postgres.ConnectTimeout == 0 {
			t.postgres.ConnectTimeout = cmd.Duration("connect-timeout")
		}
		s.db = stdlib.OpenDB(*t.postgres)
		s.sessions = pgadvisory.New()
		s.leases = pgtable.New(defaultTTL, pgtable.WithPool(s.db), pgtable.WithTable(name))
		s.migrate = append(s.migrate, migrations.Postgres())
	}
	ping, cancel := context.WithTimeout(ctx, cmd.Duration("connect-timeout"))
	defer cancel()
	if err := s.db.PingContext(ping); err != nil {
		_ = s.db.Close()
		return nil, unreachable(ctx, t, err)
	}
	return s, nil
}

// unreachable tells why there is no connection.
func unreachable(ctx context.Context, t *target, err error) error {
	var refused *mysql.MySQLError
	var refusedPG *pgconn.PgError
	switch {
	case ctx.Err() != nil: // a signal
		return context.Cause(ctx)
	case errors.As(err, &refused) && refused.Number == 1193, // ER_UNKNOWN_SYSTEM_VARIABLE
		errors.As(err, &refusedPG) && refusedPG.Code == "42704": // undefined_object
		return usage("the DSN has a parameter that neither the driver nor %s knows: %w", t, err)
	case errors.Is(err, context.DeadlineExceeded):
		return &exitError{exitUnavailable, fmt.Errorf("%s can't be reached: no answer within --connect-timeout", t)}
	}
	return &exitError{exitUnavailable, fmt.Errorf("%s can't be reached: %w", t, err)}
}

// ofTheCommand is how many of the last arguments are those of a command to run. Flags can
// follow the arguments of all others.
func ofTheCommand(cmd *cli.Command) int {
	if cmd.StopOnNthArg == nil {
		return 0
	}
	return cmd.Args().Len()
}

// close gives back what open has taken.
func (s *server) close() { _ = s.db.Close() }

// locker returns the locks of b under the namespace.
func (s *server) locker(b sqllock.Backend, opts ...sqllock.Option) *sqllock.Locker {
	if s.namespace != "" {
		opts = append(opts, sqllock.WithNamespace(s.namespace))
	}
	return sqllock.New(b, opts...)
}
