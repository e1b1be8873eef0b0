package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/sqllock/go-sqllock/mysqlnamed"
)

// lookMySQL makes the checks that are of MySQL and MariaDB.
func (d *doctor) lookMySQL(ctx context.Context) {
	vars, err := d.variables(ctx)
	if err != nil {
		d.failed("server", err)
		return
	}
	d.checks = append(d.checks, mysqlChecks(vars)...)
	d.gtid = on(vars, "enforce_gtid_consistency")
	d.proxy(ctx)
	grants, err := d.grants(ctx, vars["version"])
	if err != nil {
		d.failed("rights", err)
	} else {
		d.checks = append(d.checks, mysqlRights(grants, isMariaDB(vars["version"]), d.mysql.DBName)...)
	}
	if _, err := d.sessions.(*mysqlnamed.Backend).List(ctx, d.db); err != nil { //nolint:errcheck,forcetypeassert // it is
		d.add("list of locks", info, "sqllock list shows no locks of sessions: "+short(errors.Unwrap(err)), "sqllock who NAME works without")
	} else {
		d.add("list of locks", fine, "sqllock list shows the locks of sessions, too", "")
	}
	var used int64
	if err := d.ask(ctx, d.db, "SHOW GLOBAL STATUS LIKE 'Threads_connected'", new(string), &used); err != nil {
		d.failed("connections", err)
	} else if most := number(vars, "max_connections"); most > 0 {
		d.checks = append(d.checks, connections(most, used))
	}
}

// variables are those of the session. SHOW leaves out what a server does not know.
func (d *doctor) variables(ctx context.Context) (map[string]string, error) {
	vars := make(map[string]string)
	err := d.each(ctx, "SHOW VARIABLES WHERE Variable_name IN ('version','version_comment','read_only','super_read_only','innodb_read_only','wsrep_on',"+
		"'group_replication_group_name','group_replication_single_primary_mode','enforce_gtid_consistency','sql_require_primary_key',"+
		"'wait_timeout','max_connections','max_execution_time','max_statement_time','idle_transaction_timeout')",
		func(scan func(...any) error) error {
			var name, value string
			err := scan(&name, &value)
			vars[strings.ToLower(name)] = value
			return err
		})
	return vars, err
}

func on(vars map[string]string, name string) bool {
	v := strings.ToUpper(vars[name])
	return v != "" && v != "OFF" && v != "0"
}

func number(vars map[string]string, name string) int64 {
	n, _ := strconv.ParseFloat(vars[name], 64) // MariaDB has fractions of seconds
	return int64(n)
}

// shortIdle is how soon an idle session may be ended without that being noted, in seconds.
// A Do asks each second.
const shortIdle = 60

// mysqlChecks judges by variables. What the backends refuse they say themselves; this is
// which of it there is.
func mysqlChecks(vars map[string]string) (all []check) {
	add := func(name, level, found, do string) { all = append(all, check{name, level, found, do}) }
	product := "MySQL "
	if isMariaDB(vars["version"]) {
		product = ""
	}
	add("server", fine, strings.TrimSpace(product+vars["version"]+" "+vars["version_comment"]), "")
	if on(vars, "read_only") || on(vars, "super_read_only") || on(vars, "innodb_read_only") {
		add("read-only", problem, "the server takes no writes, so it is probably a replica", "name the primary in the DSN")
	}
	if on(vars, "wsrep_on") {
		add("cluster", problem, "a node of a Galera cluster, each of which has locks of its own", "have every process use one and the same node, and Allow(PerNode)")
	}
	if vars["group_replication_group_name"] != "" && !on(vars, "group_replication_single_primary_mode") {
		add("cluster", problem, "one of several primaries of a replication group, each of which has locks of its own", "have every process use one and the same, and Allow(PerNode)")
	}
	if seconds := number(vars, "wait_timeout"); seconds > 0 && seconds < shortIdle {
		add("wait_timeout", warning, fmt.Sprintf("a session that is idle for %d s is ended, with its locks", seconds),
			"use Do, which asks each second, or a longer one in the DSN: ?wait_timeout=28800")
	} else {
		add("wait_timeout", fine, fmt.Sprintf("%d s", seconds), "")
	}
	if seconds := number(vars, "idle_transaction_timeout"); seconds > 0 {
		add("idle_transaction_timeout", warning, fmt.Sprintf("a session whose transaction is idle for %d s is ended, with its locks", seconds), "keep guarded transactions busy, or set it to 0 in the DSN")
	}
	for _, name := range []string{"max_execution_time", "max_statement_time"} {
		if on(vars, name) && vars[name] != "0.000000" {
			add(name, info, vars[name]+"; waits for locks are not cut short by it", "")
		}
	}
	if on(vars, "sql_require_primary_key") {
		add("primary keys", info, "sql_require_primary_key is on", "make the table of leases by sqllock migrate up --engine InnoDB")
	}
	return all
}

// proxy finds out about a ProxySQL, which answers one of these two itself, with an id of
// its own.
func (d *doctor) proxy(ctx context.Context) {
	conn, err := d.db.Conn(ctx)
	if err != nil {
		d.failed("proxy", err)
		return
	}
	defer conn.Close() //nolint:errcheck // nothing is left on it
	var said, is int64
	for _, q := range []struct {
		query string
		dest  *int64
	}{{"SELECT CONNECTION_ID()", &said}, {"SELECT 0+CONNECTION_ID() v", &is}} {
		if err := d.ask(ctx, conn, q.query, q.dest); err != nil {
			d.failed("proxy", err)
			return
		}
	}
	d.checks = append(d.checks, proxyCheck(said, is))
}

func proxyCheck(said, is int64) check {
	if said == is {
		return check{"proxy", fine, "none is seen", ""}
	}
	return check{
		"proxy", warning, fmt.Sprintf("a proxy, ProxySQL for one, is between: the connection is called %d, and has session %d", said, is),
		"connect past it, or have it leave the sessions of locks alone (no multiplexing, one host group for reads and writes)",
	}
}

// engineCheck is about a table that is there, or is to be made, which is MyISAM unless
// somebody says otherwise.
func engineCheck(engine string, gtid bool) check {
	switch {
	case !gtid || engine != "" && !strings.EqualFold(engine, "MyISAM"):
		return check{"engine", fine, cmp.Or(engine, "MyISAM, or InnoDB, as you like"), ""}
	case engine == "":
		return check{
			"engine", info, "enforce_gtid_consistency is on: on MyISAM no lease can be acquired or extended in a transaction that has written to InnoDB (1785)",
			"sqllock migrate up --engine InnoDB, or give the backend a pool (table.WithPool)",
		}
	}
	return check{
		"engine", warning, engine + " with enforce_gtid_consistency: no lease can be acquired or extended in a transaction that has written to InnoDB (1785)",
		"do so outside of it, or give the backend a pool (table.WithPool), or sqllock migrate down, and up --engine InnoDB",
	}
}

// damage has the server check the table, and repairs nothing.
func (d *doctor) damage(ctx context.Context) {
	ok, said := false, "the server does not say"
	err := d.each(ctx, "CHECK TABLE `"+d.table+"`", func(scan func(...any) error) error {
		var kind, text string
		if err := scan(new(string), new(string), &kind, &text); err != nil {
			return err
		}
		if kind == "status" {
			ok = text == "OK" || strings.HasPrefix(text, "Table is already")
		}
		said = text
		return nil
	})
	switch {
	case err != nil:
		d.failed("damage", err)
	case ok:
		d.add("damage", fine, "CHECK TABLE finds none", "")
	default:
		d.add("damage", problem, "CHECK TABLE says: "+said, "REPAIR TABLE "+d.table+"; a backend with table.WithPool does that by itself")
	}
}

// grants are what SHOW GRANTS says, of the roles that are active, too.
func (d *doctor) grants(ctx context.Context, version string) (grants []string, err error) {
	show := "SHOW GRANTS"
	var roles string
	if err := d.ask(ctx, d.db, "SELECT COALESCE(CURRENT_ROLE(),'NONE')", &roles); err == nil && !isMariaDB(version) && roles != "NONE" {
		show = "SHOW GRANTS FOR CURRENT_USER() USING " + roles
	}
	err = d.each(ctx, show, func(scan func(...any) error) error {
		var grant string
		err := scan(&grant)
		grants = append(grants, grant)
		return err
	})
	return grants, err
}

// mysqlRights judges by what SHOW GRANTS says. That the rights on the table suffice is
// shown by using it.
func mysqlRights(grants []string, mariadb bool, database string) (all []check) {
	kill := "CONNECTION_ADMIN"
	if mariadb {
		kill = "CONNECTION ADMIN"
	}
	if granted(grants, "", kill, "SUPER") {
		all = append(all, check{"right to KILL", fine, "of other users' sessions, too", ""})
	} else {
		all = append(all, check{
			"right to KILL", info, "of this user's own sessions only",
			"use one user for all processes, or GRANT " + kill + " ON *.* for taking over leases of other users, and for sqllock break",
		})
	}
	if granted(grants, "", "PROCESS") {
		all = append(all, check{"right to see", fine, "sqllock who shows user and host of every session", ""})
	} else {
		all = append(all, check{"right to see", info, "of other users' sessions sqllock who shows the id only", "GRANT PROCESS ON *.* shows the rest"})
	}
	if granted(grants, database, "CREATE") && granted(grants, database, "ALTER") {
		all = append(all, check{"right to migrate", fine, "CREATE and ALTER on " + cmp.Or(database, "*"), ""})
	} else {
		all = append(all, check{"right to migrate", info, "no CREATE and ALTER on " + cmp.Or(database, "*"), "have sqllock migrate up run by a user who may, once"})
	}
	return all
}

// granted reports whether one of privileges is granted on everything, or on database. It
// does not know what is granted on single tables.
func granted(grants []string, database string, privileges ...string) bool {
	for _, grant := range grants {
		what, where, found := strings.Cut(strings.TrimPrefix(grant, "GRANT "), " ON ")
		where, _, to := strings.Cut(where, " TO ")
		where = strings.NewReplacer("`", "", `\`, "").Replace(where)
		if !found || !to || where != "*.*" && (database == "" || !strings.EqualFold(where, database+".*")) {
			continue
		}
		for one := range strings.SplitSeq(what, ",") {
			one = strings.TrimSpace(one)
			if one == "ALL PRIVILEGES" || slices.Contains(privileges, one) {
				return true
			}
		}
	}
	return false
}
