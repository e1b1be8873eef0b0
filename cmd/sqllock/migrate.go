package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/sqllock"
)

func migrateCommand() *cli.Command {
	return &cli.Command{
		Name:  "migrate",
		Usage: "make the table of leases, or the fence table, or take that back",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "fences", Usage: "the fence table of package txguard, in place of the table of leases"},
			&cli.StringFlag{Name: "fence-table", Value: "lock_fences", Usage: "`NAME` of the fence table"},
		},
		OnUsageError: onUsageError,
		Action: func(_ context.Context, cmd *cli.Command) error {
			return usage("sqllock migrate takes one of up, down, status and print, and got %q; see sqllock migrate --help", shown(cmd.Args().First()))
		},
		Commands: []*cli.Command{
			{
				Name: "up", Usage: "make the table, or bring it to the newest version",
				Flags: []cli.Flag{engineFlag()}, OnUsageError: onUsageError, Action: migrateUp,
			},
			{
				Name: "down", Usage: "drop the table, after asking; one that was there before stays",
				Flags: []cli.Flag{engineFlag(), yesFlag()}, OnUsageError: onUsageError, Action: migrateDown,
			},
			{
				Name: "status", Usage: "tell which version the table has; the exit code is 1 if migrate up is to be run",
				Flags: []cli.Flag{jsonFlag()}, OnUsageError: onUsageError, Action: migrateStatus,
			},
			{
				Name: "print", Usage: "print the SQL of up, for other tools, without asking a server",
				Flags: []cli.Flag{
					engineFlag(),
					&cli.StringFlag{Name: "dialect", Usage: "mysql (MariaDB, too) or postgres (default: that of the DSN, if there is one)"},
				},
				OnUsageError: onUsageError, Action: migratePrint,
			},
		},
	}
}

func engineFlag() cli.Flag {
	return &cli.StringFlag{Name: "engine", Usage: "storage `ENGINE` of the table of leases on MySQL and MariaDB, InnoDB or MyISAM (default: MyISAM, or that of a table that is there)"}
}

// migrationOptions are what the flags say.
func migrationOptions(cmd *cli.Command, postgres bool) (opts []migrations.Option, table string) {
	table = cmd.String("table")
	if cmd.Bool("fences") {
		table = cmd.String("fence-table")
		opts = append(opts, migrations.Fences())
	}
	opts = append(opts, migrations.WithTable(table))
	if postgres {
		opts = append(opts, migrations.Postgres())
	}
	if engine := cmd.String("engine"); engine != "" {
		opts = append(opts, migrations.WithEngine(engine))
	}
	return opts, table
}

// migrating opens the server for a migration.
func migrating(ctx context.Context, cmd *cli.Command) (s *server, opts []migrations.Option, table string, err error) {
	if err := noArgs(cmd); err != nil {
		return nil, nil, "", err
	}
	if s, err = open(ctx, cmd, "sqllock migrate"); err != nil {
		return nil, nil, "", err
	}
	opts, table = migrationOptions(cmd, s.postgres != nil)
	if _, err := migrations.FS(opts...); err != nil { // before anything is asked
		s.close()
		return nil, nil, "", usage("%w", err)
	}
	return s, opts, table, nil
}

func migrateUp(ctx context.Context, cmd *cli.Command) error {
	s, opts, table, err := migrating(ctx, cmd)
	if err != nil {
		return err
	}
	defer s.close()
	if err := migrations.Up(ctx, s.db, opts...); err != nil {
		return advise(err)
	}
	st, err := s.tableState(ctx, table, opts)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.Root().Writer, "%s is at version %d, the newest.\n", table, st.Version)
	return nil
}

func migrateDown(ctx context.Context, cmd *cli.Command) error {
	s, opts, table, err := migrating(ctx, cmd)
	if err != nil {
		return err
	}
	defer s.close()
	before, err := s.tableState(ctx, table, opts)
	if err != nil {
		return err
	}
	if before.Version == 0 {
		fmt.Fprintf(cmd.Root().Writer, "There is nothing to take back: %s.\n", before.say())
		return nil
	}
	warning, err := s.lossOf(ctx, cmd, before)
	if err != nil {
		return err
	}
	fmt.Fprintln(cmd.Root().Writer, warning)
	if err := confirm(ctx, cmd, "Go on?"); err != nil {
		return err
	}
	if err := migrations.Down(ctx, s.db, opts...); err != nil {
		return advise(err)
	}
	fmt.Fprintln(cmd.Root().Writer, "Done.")
	return nil
}

// lossOf says what is lost by migrate down.
func (s *server) lossOf(ctx context.Context, cmd *cli.Command, st *tableState) (string, error) {
	what := fmt.Sprintf("This drops %s.", st.Table)
	if !st.Ours {
		what = fmt.Sprintf("%s was there before: it stays, and loses the columns token and holder.", st.Table)
	}
	if cmd.Bool("fences") {
		return what + " What an older holder may not write any more is known from its rows: nobody may be at work with it.", nil
	}
	all, err := s.allLeases(ctx)
	if errors.Is(err, sqllock.ErrNoTable) {
		return what, nil
	}
	if err != nil {
		return "", advise(err)
	}
	var holders []string
	for _, h := range all {
		if h.Alive {
			l := held{Holder: h, kind: lease}
			holders = append(holders, fmt.Sprintf("%s by %s", printable(h.Key), l.brief()))
		}
	}
	if len(holders) == 0 {
		return what + " No lease is held.", nil
	}
	return fmt.Sprintf("%s %d are held, and will be lost: %s.", what, len(holders), strings.Join(holders, "; ")), nil
}

func migratePrint(_ context.Context, cmd *cli.Command) error {
	if err := noArgs(cmd); err != nil {
		return err
	}
	postgres, err := printsPostgres(cmd)
	if err != nil {
		return err
	}
	opts, _ := migrationOptions(cmd, postgres)
	text, err := migrations.SQL(opts...)
	if err != nil {
		return usage("%w", err)
	}
	fmt.Fprint(cmd.Root().Writer, text)
	return nil
}

func printsPostgres(cmd *cli.Command) (bool, error) {
	switch dialect := cmd.String("dialect"); dialect {
	case "mysql", "mariadb":
		return false, nil
	case "postgres", "postgresql":
		return true, nil
	case "":
	default:
		return false, usage("--dialect %s: there are mysql (for MariaDB, too) and postgres", dialect)
	}
	dsn, err := readDSN(cmd.String("dsn"), cmd.String("dsn-file"), os.Getenv)
	if err != nil {
		return false, err
	}
	if strings.TrimSpace(dsn) == "" {
		return false, usage("say for which server: --dialect mysql (for MariaDB, too) or --dialect postgres")
	}
	t, err := parseDSN(dsn)
	if err != nil {
		return false, err
	}
	return t.postgres != nil, nil
}

func migrateStatus(ctx context.Context, cmd *cli.Command) error {
	s, opts, table, err := migrating(ctx, cmd)
	if err != nil {
		return err
	}
	defer s.close()
	st, err := s.tableState(ctx, table, opts)
	if err != nil {
		return err
	}
	w := cmd.Root().Writer
	if cmd.Bool("json") {
		err = printJSON(w, st)
	} else {
		up := "not needed"
		if st.Needed {
			up = "to be run: sqllock migrate up"
			if cmd.Bool("fences") {
				up = "to be run: sqllock migrate --fences up"
			}
		}
		err = printTable(w, nil, [][]string{
			{"table", st.say()}, {"version", st.versions()}, {"up", up},
		})
	}
	if err == nil && st.Needed {
		err = &exitError{code: exitNo}
	}
	return err
}

// tableState is what there is to say of a table of migrations.
type tableState struct {
	Table   string `json:"table"`
	Exists  bool   `json:"exists"`
	Ours    bool   `json:"made_by_sqllock"` // and not adopted
	Engine  string `json:"engine"`          // of MySQL and MariaDB
	Version int64  `json:"version"`         // 0 if it has never been migrated
	Newest  int64  `json:"newest_version"`
	Needed  bool   `json:"up_needed"`
	Hidden  bool   `json:"version_hidden"` // the user may not read the version
}

func (st *tableState) say() string {
	switch {
	case !st.Exists:
		return "there is no table " + st.Table + " that this user can see"
	case st.Ours:
		return strings.TrimSpace(st.Table+" "+st.Engine) + ", made by sqllock"
	}
	return strings.TrimSpace(st.Table+" "+st.Engine) + ", adopted: it was there before, by PHP's its-mieger/mysql-shared-locks for one"
}

func (st *tableState) versions() string {
	if st.Hidden {
		return fmt.Sprintf("can't be seen: this user needs SELECT on %s_version; the newest is %d", st.Table, st.Newest)
	}
	return fmt.Sprintf("%d of %d", st.Version, st.Newest)
}

// tableState asks the server, and changes nothing.
func (s *server) tableState(ctx context.Context, table string, opts []migrations.Option) (*tableState, error) {
	files, err := migrations.FS(opts...)
	if err != nil {
		return nil, err
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, err
	}
	st := &tableState{Table: table, Newest: int64(len(names))}
	var comment sql.NullString
	err = s.db.QueryRowContext(ctx, s.tableQuery(), s.mode([]any{table})...).Scan(&st.Engine, &comment)
	switch {
	case err == nil:
		st.Exists, st.Ours = true, strings.HasPrefix(comment.String, "go-sqllock")
	case !errors.Is(err, sql.ErrNoRows):
		return nil, err
	}
	if err := s.versionOf(ctx, st); err != nil {
		return nil, err
	}
	st.Needed = !st.Hidden && (st.Version < st.Newest || !st.Exists)
	return st, nil
}

func (s *server) tableQuery() string {
	if s.mysql != nil {
		return "SELECT COALESCE(engine,''),table_comment FROM information_schema.tables WHERE table_schema=DATABASE() AND table_name=?"
	}
	return "SELECT '',obj_description(c.oid,'pg_class') FROM pg_class c JOIN pg_namespace n ON n.oid=c.relnamespace" +
		" WHERE n.nspname=current_schema() AND c.relname=$1 AND c.relkind IN ('r','p','v','f')"
}

// versionOf asks for the version that the migrations have noted.
func (s *server) versionOf(ctx context.Context, st *tableState) error {
	quote := `"`
	if s.mysql != nil {
		quote = "`"
	}
	var version sql.NullInt64
	err := s.ask(ctx, s.db, "SELECT MAX(version_id) FROM "+quote+st.Table+"_version"+quote, &version)
	st.Version = version.Int64
	switch said := code(err); {
	case err == nil, said == "1146", said == "42P01": // there is none
		return nil
	case said == "1142", said == "42501":
		st.Hidden = true
		return nil
	}
	return err
}
