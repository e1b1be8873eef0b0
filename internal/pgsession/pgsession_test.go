package pgsession_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/sqllock"
)

func TestText(t *testing.T) {
	for s, want := range map[string]string{
		"":            `E''`,
		"job":         `E'job'`,
		"it's":        `E'it''s'`,
		`back\slash`:  `E'back\\slash'`,
		`\'`:          `E'\\'''`,
		`'\`:          `E'''\\'`,
		`\\'';--`:     `E'\\\\'''';--'`,
		"$1 %s ? :a":  `E'$1 %s ? :a'`,
		"two\nlines":  "E'two\nlines'",
		"billing:job": `E'billing:job'`,
	} {
		if got := pgsession.Text(s); got != want {
			t.Errorf("Text(%q) is %s, want %s", s, got, want)
		}
	}
}

// FuzzText: what a server that reads E” literals makes of it is the name again, and the
// literal ends where it is to.
func FuzzText(f *testing.F) {
	for _, s := range []string{"job", `it's`, `\`, `\'`, `''`, `'); DROP TABLE work; --`, `\\\'''`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := pgsession.Text(s)
		inner, ok := strings.CutPrefix(got, "E'")
		if !ok {
			t.Fatalf("%s", got)
		}
		var read strings.Builder
		for {
			switch {
			case inner == "":
				t.Fatalf("%s does not end", got)
			case inner == "'":
				if read.String() != s {
					t.Fatalf("%q is read as %q", s, read.String())
				}
				return
			case strings.HasPrefix(inner, `\\`), strings.HasPrefix(inner, "''"):
				read.WriteByte(inner[0])
				inner = inner[2:]
			case inner[0] == '\\' || inner[0] == '\'':
				t.Fatalf("%s ends, or has an escape, at %q", got, inner)
			default:
				read.WriteByte(inner[0])
				inner = inner[1:]
			}
		}
	})
}

func pgError(severity, code, message string) error {
	return fmt.Errorf("sent: %w", &pgconn.PgError{Severity: severity, SeverityUnlocalized: severity, Code: code, Message: message})
}

func TestClassify(t *testing.T) {
	all := []error{sqllock.ErrSessionGone, sqllock.ErrInterrupted, sqllock.ErrDeadlock, sqllock.ErrInTransaction, sqllock.ErrBusy, sqllock.ErrLost}
	for _, test := range []struct {
		name string
		err  error
		want error // nil for none of all
		text string
	}{
		{"none", nil, nil, ""},
		{"the end of a transaction", sql.ErrTxDone, nil, ""},
		{"a closed conn", sql.ErrConnDone, nil, ""},
		{"classified before", fmt.Errorf("%w: before", sqllock.ErrSessionGone), sqllock.ErrSessionGone, "before"},
		{"of the driver", io.ErrUnexpectedEOF, sqllock.ErrSessionGone, "EOF"},
		{"lock_timeout", pgError("ERROR", "55P03", ""), nil, ""},
		{"cancelled", pgError("ERROR", "57014", ""), sqllock.ErrInterrupted, ""},
		{"deadlock", pgError("ERROR", "40P01", ""), sqllock.ErrDeadlock, ""},
		{"a failed transaction", pgError("ERROR", "25P02", ""), sqllock.ErrInTransaction, "roll it back"},
		{"no room", pgError("ERROR", "53200", "out of shared memory"), nil, "max_locks_per_transaction"},
		{"no memory otherwise", pgError("ERROR", "53200", "out of memory"), nil, "out of memory"},
		{"FATAL", pgError("FATAL", "57P01", ""), sqllock.ErrSessionGone, ""},
		{"FATAL of a code that is another thing", pgError("FATAL", "40P01", ""), sqllock.ErrSessionGone, ""},
		{"PANIC", pgError("PANIC", "XX000", ""), sqllock.ErrSessionGone, ""},
		{"FATAL in another language", &pgconn.PgError{Severity: "FATAL", SeverityUnlocalized: "FATAL"}, sqllock.ErrSessionGone, ""},
		{"a localised one", &pgconn.PgError{Severity: "SCHWERWIEGEND", SeverityUnlocalized: "FATAL"}, sqllock.ErrSessionGone, ""},
		{"before 9.6", &pgconn.PgError{Severity: "FATAL"}, sqllock.ErrSessionGone, ""},
		{"another", pgError("ERROR", "42501", "denied"), nil, "denied"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := pgsession.Classify(test.err)
			if test.err != nil && !errors.Is(err, sqllock.ErrSessionGone) && !errors.Is(err, test.err) {
				t.Errorf("%v does not match what it is of", err)
			}
			for _, sentinel := range all {
				if got, want := errors.Is(err, sentinel), errors.Is(test.want, sentinel); got != want {
					t.Errorf("%v matches %q: %v, want %v", err, sentinel, got, want)
				}
			}
			if pgsession.Code(err) != pgsession.Code(test.err) {
				t.Errorf("the SQLSTATE was %q and is %q", pgsession.Code(test.err), pgsession.Code(err))
			}
			if err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v does not say %q", err, test.text)
			}
		})
	}
}

func TestNotSent(t *testing.T) {
	gone := sqllock.ErrSessionGone
	for _, test := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{gone, false},
		{pgsession.Classify(io.ErrUnexpectedEOF), false},
		{pgsession.Classify(pgError("ERROR", "57014", "")), false},
		{pgsession.Classify(pgError("FATAL", "57P01", "")), true},
	} {
		if got := pgsession.NotSent(test.err); got != test.want {
			t.Errorf("NotSent(%v) is %v", test.err, got)
		}
	}
}

// TestSlices: no longer than the deadline, never nothing, which would be no limit.
func TestSlices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			left, limit, want time.Duration
			ended             bool
		}{
			{0, time.Hour, time.Minute, false}, // no deadline
			{0, time.Second, time.Second, false},
			{time.Hour, time.Hour, time.Minute, false},
			{time.Second, time.Hour, time.Second, false},
			{time.Second, time.Millisecond, time.Millisecond, false},
			{time.Millisecond, time.Hour, time.Millisecond, false},
			{time.Millisecond - 1, time.Hour, time.Millisecond, true},
			{-time.Second, time.Hour, time.Millisecond, true},
			{math.MaxInt64, time.Hour, time.Minute, false},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			if test.left != 0 {
				ctx, cancel = context.WithTimeout(t.Context(), test.left)
			}
			if got := pgsession.Slice(ctx, test.limit); got != test.want {
				t.Errorf("Slice with %v left, limit %v: %v, want %v", test.left, test.limit, got, test.want)
			}
			if got := pgsession.Ended(ctx); got != test.ended {
				t.Errorf("Ended with %v left: %v", test.left, got)
			}
			cancel()
			if !pgsession.Ended(ctx) {
				t.Error("a cancelled ctx has not ended")
			}
		}
	})
}

// TestLimitedTx: the lock is between the settings and their end, behind a savepoint that
// is removed.
func TestLimitedTx(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "'1'", time.Nanosecond: "'1'", time.Millisecond: "'1'", 1500 * time.Microsecond: "'1'", 90 * time.Second: "'90000'",
	} {
		q := pgsession.LimitedTx(d, "SELECT the_lock()")
		rest := q
		for _, part := range []string{
			"SAVEPOINT go_sqllock;", "current_setting('lock_timeout')", "set_config('lock_timeout'," + want + ",true)", "set_config('statement_timeout','0',true)",
			"SELECT the_lock();", "set_config('lock_timeout',current_setting(", "RELEASE SAVEPOINT go_sqllock",
		} {
			_, after, found := strings.Cut(rest, part)
			if !found {
				t.Errorf("%v: %q is not where it should be in %s", d, part, q)
			}
			rest = after
		}
		if rest != "" {
			t.Errorf("%v: something comes after the savepoint is removed: %s", d, q)
		}
	}
}

func TestRefused(t *testing.T) {
	const pg = "PostgreSQL 15.8 on x86_64"
	for _, test := range []struct {
		version string
		standby bool
		allowed pgsession.Risk
		want    string // in the error, "" for none
	}{
		{pg, false, 0, ""},
		{"EnterpriseDB 15", false, 0, ""},
		{"", false, 0, "not PostgreSQL"},
		{"postgresql 15", false, 0, "not PostgreSQL"},
		{"PostgreSQL", false, 0, "not PostgreSQL"},
		{"CockroachDB CCL v23.1.11", false, 0, "pgx.Allow(pgx.Lookalike)"},
		{"CockroachDB CCL v23.1.11", false, pgsession.Pooler | pgsession.ReadOnly, "pgx.Allow(pgx.Lookalike)"},
		{"CockroachDB CCL v23.1.11", false, pgsession.Lookalike, ""},
		{"CockroachDB CCL v23.1.11", true, pgsession.Lookalike, "standby"},
		{"PostgreSQL 11.2-YB-2.20.1.0-b0 on x86_64", false, 0, "not PostgreSQL"},
		{pg, true, 0, "pgx.Allow(pgx.ReadOnly)"},
		{pg, true, pgsession.Lookalike | pgsession.Pooler, "standby"},
		{pg, true, pgsession.ReadOnly, ""},
	} {
		err := pgsession.Refused(test.version, test.standby, test.allowed, "pgx")
		if test.want == "" {
			if err != nil {
				t.Errorf("%q, %v, %v: %v", test.version, test.standby, test.allowed, err)
			}
			continue
		}
		if !errors.Is(err, sqllock.ErrUnsupported) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q, %v, %v: got %v, want one that says %s", test.version, test.standby, test.allowed, err, test.want)
		}
	}
}

func TestNumbered(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{"": "000", "1": "010", "0,2": "101", "3": "error", "-1": "error", "x": "error"} {
		answers, err := pgsession.Numbered(answer, 3)
		got := ""
		for _, is := range answers {
			got += map[bool]string{false: "0", true: "1"}[is]
		}
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", answer, got, want)
		}
	}
}
