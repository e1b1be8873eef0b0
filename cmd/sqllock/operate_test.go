package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"
	"github.com/urfave/cli/v3"

	"github.com/sqllock/go-sqllock/sqllock"
)

// found are the levels of checks, by name.
func found(checks []check) map[string]string {
	levels := make(map[string]string)
	for _, c := range checks {
		levels[c.Check] = c.Level
		if c.Level == problem && c.Do == "" {
			levels[c.Check] += " without what to do"
		}
	}
	return levels
}

func wantLevels(t *testing.T, checks []check, want map[string]string) {
	t.Helper()
	got := found(checks)
	for name, level := range want {
		if got[name] != level {
			t.Errorf("check %q: %q, want %q; all are %v", name, got[name], level, got)
		}
	}
	for name, level := range got {
		if _, ok := want[name]; !ok && level != fine {
			t.Errorf("check %q: %q, want none", name, level)
		}
	}
}

func TestMySQLChecks(t *testing.T) {
	for _, test := range []struct {
		name string
		vars map[string]string
		want map[string]string
	}{
		{"a plain server", map[string]string{"version": "9.7.4", "wait_timeout": "28800", "wsrep_on": "OFF", "read_only": "OFF", "max_execution_time": "0", "max_statement_time": "0.000000"}, nil},
		{"a replica", map[string]string{"read_only": "ON", "super_read_only": "ON"}, map[string]string{"read-only": problem}},
		{"InnoDB is read-only", map[string]string{"innodb_read_only": "1"}, map[string]string{"read-only": problem}},
		{"MariaDB's read_only", map[string]string{"read_only": "NO_LOCK"}, map[string]string{"read-only": problem}},
		{"Galera", map[string]string{"wsrep_on": "ON"}, map[string]string{"cluster": problem}},
		{"several primaries", map[string]string{"group_replication_group_name": "x", "group_replication_single_primary_mode": "OFF"}, map[string]string{"cluster": problem}},
		{"one primary", map[string]string{"group_replication_group_name": "x", "group_replication_single_primary_mode": "ON"}, nil},
		{"sessions end soon", map[string]string{"wait_timeout": "30"}, map[string]string{"wait_timeout": warning}},
		{"transactions end soon", map[string]string{"idle_transaction_timeout": "5"}, map[string]string{"idle_transaction_timeout": warning}},
		{"limits", map[string]string{"max_execution_time": "100", "max_statement_time": "1.500000"}, map[string]string{"max_execution_time": info, "max_statement_time": info}},
		{"primary keys", map[string]string{"sql_require_primary_key": "ON"}, map[string]string{"primary keys": info}},
	} {
		t.Run(test.name, func(t *testing.T) { wantLevels(t, mysqlChecks(test.vars), test.want) })
	}
}

func TestPGChecks(t *testing.T) {
	for _, test := range []struct {
		name     string
		settings map[string]string
		want     map[string]string
	}{
		{"a plain server", map[string]string{"version": "PostgreSQL 15.1 on x", "standby": "false", "lock_timeout": "0", "default_transaction_read_only": "off"}, nil},
		{"a standby", map[string]string{"standby": "true", "default_transaction_read_only": "on"}, map[string]string{"read-only": problem}},
		{"reads by default", map[string]string{"default_transaction_read_only": "on"}, map[string]string{"read-only": warning}},
		{"sessions end soon", map[string]string{"idle_session_timeout": "1000"}, map[string]string{"idle_session_timeout": warning}},
		{"transactions end soon", map[string]string{"idle_in_transaction_session_timeout": "1", "transaction_timeout": "1"}, map[string]string{"idle_in_transaction_session_timeout": warning, "transaction_timeout": warning}},
		{"limits", map[string]string{"statement_timeout": "1", "lock_timeout": "1"}, map[string]string{"statement_timeout": info, "lock_timeout": info}},
	} {
		t.Run(test.name, func(t *testing.T) { wantLevels(t, pgChecks(test.settings), test.want) })
	}
}

func TestOtherChecks(t *testing.T) {
	all := func(checks ...check) []check { return checks }
	behind := &tableState{Table: "t", Exists: true, Version: 1, Newest: 2, Needed: true}
	for _, test := range []struct {
		name   string
		checks []check
		want   map[string]string
	}{
		{"no proxy", all(proxyCheck(7, 7), poolerCheck(7, 7)), nil},
		{"ProxySQL", all(proxyCheck(7, 12)), map[string]string{"proxy": warning}},
		{"PgBouncer", all(poolerCheck(7, 12)), map[string]string{"pooler": problem}},
		{"clocks agree", all(clockCheck(20*time.Millisecond, 40*time.Millisecond)), nil},
		{"the server is ahead", all(clockCheck(3*time.Second, time.Millisecond)), map[string]string{"clock": info}},
		{"the server is behind", all(clockCheck(-3*time.Second, time.Millisecond)), map[string]string{"clock": info}},
		{"room", all(connections(100, 89)), nil},
		{"no room", all(connections(100, 91)), map[string]string{"connections": warning}},
		{"MyISAM", all(engineCheck("MyISAM", false), engineCheck("InnoDB", true)), nil},
		{"MyISAM with GTIDs", all(engineCheck("MyISAM", true)), map[string]string{"engine": warning}},
		{"a table to be made with GTIDs", all(engineCheck("", true)), map[string]string{"engine": info}},
		{"a table behind", all(tableCheck(behind)), map[string]string{"table": warning}},
		{"fences behind", all(fenceCheck(behind)), map[string]string{"fence table": warning}},
		{"a version that is hidden", all(tableCheck(&tableState{Exists: true, Hidden: true})), map[string]string{"table": info}},
		{"an administrator", pgRightsChecks(true, false, false, true, true), nil},
		{"somebody", pgRightsChecks(false, false, false, false, true), map[string]string{"right to end": info, "right to see": info, "right to migrate": info}},
		{"no schema", pgRightsChecks(true, true, true, false, false), map[string]string{"right to migrate": problem}},
	} {
		t.Run(test.name, func(t *testing.T) { wantLevels(t, test.checks, test.want) })
	}
}

func TestGranted(t *testing.T) {
	for _, test := range []struct {
		grants  []string
		mariadb bool
		want    map[string]string
	}{
		{[]string{"GRANT USAGE ON *.* TO `a`@`%`", "GRANT SELECT, INSERT ON `app`.* TO `a`@`%`"}, false, map[string]string{"right to KILL": info, "right to see": info, "right to migrate": info}},
		{[]string{"GRANT PROCESS, SUPER ON *.* TO `a`@`%`", "GRANT ALL PRIVILEGES ON `app`.* TO `a`@`%`"}, false, nil},
		{[]string{"GRANT CONNECTION_ADMIN ON *.* TO `a`@`%`", "GRANT ALL PRIVILEGES ON `other`.* TO `a`@`%`"}, false, map[string]string{"right to see": info, "right to migrate": info}},
		{[]string{"GRANT CONNECTION ADMIN ON *.* TO `a`@`%`"}, true, map[string]string{"right to see": info, "right to migrate": info}},
		{[]string{"GRANT ALL PRIVILEGES ON *.* TO `a`@`%` WITH GRANT OPTION", "GRANT PROXY ON ``@`%` TO `a`@`%`"}, true, nil},
		{[]string{"GRANT `role`@`%` TO `a`@`%`", "GRANT CREATE, ALTER ON `app`.`t` TO `a`@`%`"}, false, map[string]string{"right to KILL": info, "right to see": info, "right to migrate": info}},
		{[]string{"GRANT CREATE, ALTER ON `my\\_app`.* TO `a`@`%`"}, false, map[string]string{"right to KILL": info, "right to see": info, "right to migrate": info}},
	} {
		t.Run(strings.Join(test.grants, "; "), func(t *testing.T) { wantLevels(t, mysqlRights(test.grants, test.mariadb, "app"), test.want) })
	}
	if !granted([]string{"GRANT CREATE ON `my\\_app`.* TO `a`@`%`"}, "my_app", "CREATE") {
		t.Error("a database with an escaped name is not known")
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 59*time.Second + 900*time.Millisecond: "59s", 3*time.Minute + 12*time.Second: "3m12s", 61 * time.Minute: "1h01m",
		49 * time.Hour: "2d01h", -90 * time.Second: "-1m30s",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestQuoted(t *testing.T) {
	for s, want := range map[string]string{"": "''", "invoices": "invoices", "billing:a_b-c.d": "billing:a_b-c.d", "it's": `'it'\''s'`, "a b": "'a b'", "$x": "'$x'", "~": "'~'"} {
		if got := quoted(s); got != want {
			t.Errorf("quoted(%q) = %s, want %s", s, got, want)
		}
	}
	if got := printable("a\x1b[2Jb\tc\u0085"); got != "a?[2Jb?c?" {
		t.Errorf("printable: %q", got)
	}
}

func TestPrintTable(t *testing.T) {
	var b bytes.Buffer
	if err := printTable(&b, []string{"A", "BB"}, [][]string{{"long one", ""}, {"x\ty", "z"}}); err != nil {
		t.Fatal(err)
	}
	if want := "A         BB\nlong one  -\nx?y       z\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestQuantile(t *testing.T) {
	var took []time.Duration
	for i := range 100 {
		took = append(took, time.Duration(i+1)*time.Second)
	}
	for q, want := range map[float64]float64{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		if got := quantile(took, q); got != want {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	if f := figure("b", "o", 1, took[:1], 0); f.P50 != 1 || f.P99 != 1 || f.PerSecond != 0 {
		t.Errorf("of one: %+v", f)
	}
	for s, want := range map[float64]string{0.0000271: "27µs", 0.0012345: "1.23ms", 1.23456: "1.235s"} {
		if got := seconds(s); got != want {
			t.Errorf("seconds(%v) = %s, want %s", s, got, want)
		}
	}
}

func TestSort(t *testing.T) {
	at := func(key string, seconds int64) held {
		h := held{Holder: sqllock.Holder{Key: key}}
		if seconds > 0 {
			h.Since = time.Unix(seconds, 0)
		}
		return h
	}
	s := sight{locks: []held{at("unknown", 0), at("young", 9), at("b", 5), at("a", 5), at("old", 1)}}
	s.sort()
	var got []string
	for _, h := range s.locks {
		got = append(got, h.Key)
	}
	if want := []string{"old", "a", "b", "young", "unknown"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestAdd: a doorbell is its lease.
func TestAdd(t *testing.T) {
	of := func(kind, key string, session int64, alive bool) held {
		return held{Holder: sqllock.Holder{Key: key, Session: session, Alive: alive}, kind: kind}
	}
	for name, test := range map[string]struct {
		lease, session held
		want           int
	}{
		"its doorbell":                 {of(lease, "Job", 7, true), of(ofSession, "job", 7, true), 1},
		"another one's":                {of(lease, "job", 7, true), of(ofSession, "job", 8, true), 2},
		"another lock of that session": {of(lease, "job", 7, true), of(ofSession, "other", 7, true), 2},
		"beside a dead one":            {of(lease, "job", 7, false), of(ofSession, "job", 7, true), 2},
	} {
		s := sight{locks: []held{test.lease}}
		s.add(test.session)
		if len(s.locks) != test.want {
			t.Errorf("%s: %d, want %d", name, len(s.locks), test.want)
		}
	}
}

func TestIsTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close() //nolint:errcheck // it is read only
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // of no interest
	for _, stream := range []any{null, file, &bytes.Buffer{}, nil} {
		if isTerminal(stream) {
			t.Errorf("%v is taken for a terminal", stream)
		}
	}
}

// TestNobodyToAsk: what asks does nothing when nobody is there.
func TestNobodyToAsk(t *testing.T) {
	asked := func(args ...string) error {
		cmd := &cli.Command{
			Name: "x", Flags: []cli.Flag{yesFlag()}, Reader: strings.NewReader("y\n"), Writer: io.Discard,
			Action: func(ctx context.Context, cmd *cli.Command) error { return confirm(ctx, cmd, "Really?") },
		}
		return cmd.Run(t.Context(), append([]string{"x"}, args...))
	}
	if err := asked(); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("without a terminal: %v", err)
	}
	for _, yes := range []string{"--yes", "-y"} {
		if err := asked(yes); err != nil {
			t.Errorf("%s: %v", yes, err)
		}
	}
}

func TestCommandLine(t *testing.T) {
	s := &server{namespace: "my shop"}
	if got, want := s.command("break", "a b"), "sqllock break --namespace 'my shop' 'a b'"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if err := advise(sqllock.ErrNoTable); !errors.Is(err, sqllock.ErrNoTable) || !strings.Contains(err.Error(), "sqllock migrate up") {
		t.Errorf("advice: %v", err)
	}
	if err := errors.New("any"); !errors.Is(advise(err), err) || advise(err).Error() != "any" {
		t.Errorf("advice on any error: %v", advise(err))
	}
}

// TestWatchInterrupted: Ctrl-C while the server is being asked is the end, and no error.
func TestWatchInterrupted(t *testing.T) {
	db, mock, err := sqlmock.New()
	if err != nil {
		t.Fatal(err)
	}
	mock.ExpectClose()
	defer db.Close() //nolint:errcheck // it is none
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := &server{target: &target{mysql: mysql.NewConfig()}, db: db}
	cmd := &cli.Command{
		Name: "x", Flags: listCommand().Flags, Writer: io.Discard,
		Action: func(ctx context.Context, cmd *cli.Command) error { return s.watch(ctx, cmd, nil) },
	}
	if err := cmd.Run(ctx, []string{"x"}); err != nil {
		t.Errorf("list --watch after Ctrl-C: %v", err)
	}
}
