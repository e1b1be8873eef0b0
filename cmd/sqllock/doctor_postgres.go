package main

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/stdlib"
)

// lookPostgres makes the checks that are of PostgreSQL.
func (d *doctor) lookPostgres(ctx context.Context) {
	settings := make(map[string]string)
	err := d.each(ctx, pgSettingsQuery, func(scan func(...any) error) error {
		var name, value string
		err := scan(&name, &value)
		settings[name] = value
		return err
	})
	if err != nil {
		d.failed("server", err)
		var version string
		if err := d.ask(ctx, d.db, "SELECT version()", &version); err == nil { // it may not know the rest
			d.add("server", info, version, "")
		}
	} else {
		d.checks = append(d.checks, pgChecks(settings)...)
	}
	d.pooler(ctx)
	d.pgRights(ctx)
	var most, used int64
	if err := d.ask(ctx, d.db, "SELECT current_setting('max_connections')::bigint,count(*) FROM pg_stat_activity WHERE backend_type='client backend'", &most, &used); err != nil {
		d.failed("connections", err)
	} else {
		d.checks = append(d.checks, connections(most, used))
	}
}

// pgSettingsQuery leaves out what a server does not know.
const pgSettingsQuery = "SELECT 'version',version() UNION ALL SELECT 'standby',pg_is_in_recovery()::text" +
	" UNION ALL SELECT name,setting FROM pg_settings WHERE name IN ('default_transaction_read_only','idle_session_timeout'," +
	"'idle_in_transaction_session_timeout','transaction_timeout','statement_timeout','lock_timeout','client_connection_check_interval')"

// pgChecks judges by settings. Times are in milliseconds.
func pgChecks(settings map[string]string) (all []check) {
	add := func(name, level, found, do string) { all = append(all, check{name, level, found, do}) }
	version, _, _ := strings.Cut(settings["version"], " on ")
	add("server", fine, version, "")
	if settings["standby"] == "true" {
		add("read-only", problem, "the server is a standby", "name the primary, or target_session_attrs=read-write, in the DSN")
	} else if settings["default_transaction_read_only"] == "on" {
		add("read-only", warning, "default_transaction_read_only is on: leases are written all the same; is this the server for that?", "if not, name the primary in the DSN")
	}
	for _, s := range []struct{ name, level, what, do string }{
		{"idle_session_timeout", warning, "a session that is idle for %v ms is ended, with its locks", "use Do, which asks each second, or set it to 0 in the DSN"},
		{"idle_in_transaction_session_timeout", warning, "a session whose transaction is idle for %v ms is ended, with its locks", "keep guarded transactions busy, or set it to 0 in the DSN"},
		{"transaction_timeout", warning, "a transaction of more than %v ms ends its session, with its locks", "set it to 0 in the DSN of what works for longer"},
		{"statement_timeout", info, "%v ms; waits for locks are not cut short by it", ""},
		{"lock_timeout", info, "%v ms; waits for locks are not cut short by it", ""},
	} {
		if v := settings[s.name]; v != "" && v != "0" {
			add(s.name, s.level, fmt.Sprintf(s.what, v), s.do)
		}
	}
	return all
}

// pooler compares what the connection was told with what it has.
func (d *doctor) pooler(ctx context.Context) {
	conn, err := d.db.Conn(ctx)
	if err != nil {
		d.failed("pooler", err)
		return
	}
	defer conn.Close() //nolint:errcheck // nothing is left on it
	var said, is int64
	err = conn.Raw(func(dc any) error {
		if c, ok := dc.(*stdlib.Conn); ok {
			said = int64(c.Conn().PgConn().PID())
		}
		return nil
	})
	if err == nil {
		err = d.ask(ctx, conn, "SELECT pg_backend_pid()", &is)
	}
	if err != nil {
		d.failed("pooler", err)
		return
	}
	d.checks = append(d.checks, poolerCheck(said, is))
}

func poolerCheck(said, is int64) check {
	if said == is {
		return check{"pooler", fine, "none is seen", ""}
	}
	return check{
		"pooler", problem, fmt.Sprintf("a pooler, PgBouncer for one, is between: the connection was told it had process %d, and has %d", said, is),
		"connect past it, or use LockTx, or pgadvisory.Allow(pgadvisory.Pooler) if it is in session mode",
	}
}

func (d *doctor) pgRights(ctx context.Context) {
	var super, signal, stats, create sql.NullBool
	// A member that does not inherit has none of a role's rights: MEMBER would not tell.
	err := d.ask(ctx, d.db, "SELECT (SELECT rolsuper FROM pg_roles WHERE rolname=current_user),pg_has_role('pg_signal_backend','USAGE'),pg_has_role('pg_read_all_stats','USAGE'),"+
		"has_schema_privilege(current_schema(),'CREATE')", &super, &signal, &stats, &create)
	if err != nil {
		d.failed("rights", err)
		return
	}
	d.checks = append(d.checks, pgRightsChecks(super.Bool, signal.Bool, stats.Bool, create.Bool, create.Valid)...)
}

func pgRightsChecks(super, signal, stats, create, schema bool) (all []check) {
	may := func(name string, right bool, found, lacks, do string) {
		if right {
			all = append(all, check{name, fine, found, ""})
		} else {
			all = append(all, check{name, info, lacks, do})
		}
	}
	may("right to end", super || signal, "sessions of other roles, too", "sessions of this role only",
		"use one role for all processes, or GRANT pg_signal_backend for taking over leases of other roles, and for sqllock break")
	may("right to see", super || stats, "sqllock who shows host and state of every session", "of other roles' sessions sqllock who shows id and user only",
		"GRANT pg_read_all_stats shows the rest")
	if !schema {
		return append(all, check{"right to migrate", problem, "there is no current schema: search_path names none that exists", "set search_path for this role, or in the DSN"})
	}
	may("right to migrate", create, "CREATE on the schema", "no CREATE on the schema", "have sqllock migrate up run by a role that may, once")
	return all
}
