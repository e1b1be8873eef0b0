package txguard_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"
)

func TestOptionErrors(t *testing.T) {
	s := newScene(t, &plain{})
	for _, test := range []struct {
		opt  txguard.Option
		want string
	}{
		{txguard.MinTTL(0), "MinTTL(0s): it must be positive"},
		{txguard.MinTTL(-time.Second), "MinTTL(-1s): it must be positive"},
		{txguard.Retries(-1), "Retries(-1): it must not be negative"},
		{txguard.WithEvidence(nil), "WithEvidence(nil): it needs a fence, made by NewFence"},
	} {
		forms := map[string]error{
			"Run": txguard.Run(s.ctx, s.lock, sell, test.opt),
			"Do":  txguard.Do(s.ctx, sqllock.New(&plain{}), s.db, "job", sell, test.opt),
		}
		_, forms["TryDo"] = txguard.TryDo(s.ctx, sqllock.New(&plain{}), s.db, "job", sell, test.opt)
		for form, err := range forms {
			wantOutcome(t, err, txguard.ErrNotBegun)
			if want := `txguard: "job": not begun: ` + test.want; err == nil || err.Error() != want {
				t.Errorf("%s: got %v, want %s", form, err, want)
			}
		}
	}
	s.log.sent(t)
}

func TestOutcomeError(t *testing.T) {
	reason := fmt.Errorf("%w: %w", sqllock.ErrLost, errBroke)
	for _, test := range []struct {
		outcome error
		want    string
	}{
		{txguard.ErrNotBegun, `txguard: "a \"job\"": not begun: the lock was lost: broken pipe`},
		{txguard.ErrRolledBack, `txguard: "a \"job\"": rolled back: the lock was lost: broken pipe`},
		{txguard.ErrUnguarded, `txguard: "a \"job\"": not guarded: the lock was lost: broken pipe`},
		{txguard.ErrUnknown, `txguard: "a \"job\"": the outcome of the commit is unknown: the lock was lost: broken pipe`},
	} {
		err := &txguard.OutcomeError{Name: `a "job"`, Outcome: test.outcome, Err: reason}
		if err.Error() != test.want {
			t.Errorf("got %s\nwant %s", err, test.want)
		}
		for _, target := range []error{test.outcome, reason, sqllock.ErrLost, errBroke} {
			if !errors.Is(err, target) {
				t.Errorf("%v should match %v", err, target)
			}
		}
		for _, other := range outcomes() {
			if !errors.Is(test.outcome, other) && errors.Is(err, other) {
				t.Errorf("%v should not match %v", err, other)
			}
		}
	}
}

// TestTextsSayItOnce: the errors of the packages lie within each other, and who
// reads them needs each prefix and each outcome once.
func TestTextsSayItOnce(t *testing.T) {
	s := newFencedScene(t, nil)
	s.works()
	s.done(insert, 5<<32)
	s.ExpectCommit().WillReturnError(errBroke)
	s.work.ExpectBegin()
	s.work.answer(look, 99, "", 0)
	s.work.ExpectRollback()
	err := txguard.Run(s.ctx, s.lock, sell, txguard.WithEvidence(s.fence))
	wantOutcome(t, err, txguard.ErrUnknown)
	for _, once := range []string{"txguard: ", "the outcome of the commit is unknown"} {
		if n := strings.Count(err.Error(), once); n != 1 {
			t.Errorf("%q is there %d times: %v", once, n, err)
		}
	}
}

func panicOf(f func()) (text string) {
	defer func() {
		if p := recover(); p != nil {
			text = fmt.Sprint(p)
		}
	}()
	f()
	return ""
}

func TestNewFence(t *testing.T) {
	if got := panicOf(func() { txguard.NewFence(nil) }); !strings.Contains(got, "*sql.DB of the database where the work is done") {
		t.Errorf("NewFence(nil) should panic and say what it needs: %s", got)
	}
	for _, name := range []string{"", ".", "a.", ".a", "a.b.c", "a b", "a`b", "fences;", "ä", "a.b`", "a-b"} {
		got := panicOf(func() { txguard.WithTable(name) })
		if want := fmt.Sprintf("txguard: WithTable(%q): the name must be ASCII letters", name); !strings.HasPrefix(got, want) {
			t.Errorf("WithTable(%q): got panic %q, want one that begins with %q", name, got, want)
		}
	}
	for name, quoted := range map[string]string{
		"my_fences":   "`my_fences`",
		"Shop$1.F2":   "`Shop$1`.`F2`",
		"1":           "`1`",
		"lock_fences": "`lock_fences`",
	} {
		w := newWire(t, "", &wireLog{})
		w.done("DELETE", 0)
		if _, err := txguard.NewFence(w.db, txguard.WithTable(name)).Sweep(t.Context(), time.Second); err != nil {
			t.Error(err)
		}
		w.log.sent(t, "DELETE FROM "+quoted+" WHERE name>='' AND updated<UNIX_TIMESTAMP()-1")
	}
}

// TestTableInTexts: what is to be migrated is named as the program names it.
func TestTableInTexts(t *testing.T) {
	s := newFencedScene(t, &leases{})
	s.work.fails(insert[:len(insert)-len("`lock_fences`")], number(1146))
	_, err := txguard.NewFence(s.work.db, txguard.WithTable("shop.fences")).Raise(s.ctx, s.lock)
	wantOutcome(t, err, txguard.ErrNotBegun, sqllock.ErrNoTable)
	if !strings.Contains(err.Error(), "shop.fences") {
		t.Errorf("the error should name the table: %v", err)
	}
}

// TestTxOptionsAreCopied: what the caller does to its variable afterwards is no
// matter.
func TestTxOptionsAreCopied(t *testing.T) {
	s := newScene(t, &plain{})
	opts := sql.TxOptions{Isolation: sql.LevelSerializable}
	opt := txguard.WithTxOptions(opts)
	opts.ReadOnly = true
	s.ExpectBegin()
	s.ExpectCommit()
	wantOutcome(t, txguard.Run(s.ctx, s.lock, func(context.Context, *sql.Tx) error { return nil }, opt), nil)
	s.log.did(t, "BEGIN Serializable", "COMMIT")
}

// TestNil: what is nil is said, and nothing is sent.
func TestNil(t *testing.T) {
	never := func(context.Context, *sql.Tx) error {
		t.Error("the function was called")
		return nil
	}
	w := newWire(t, "", &wireLog{})
	_, raised := txguard.NewFence(w.db).Raise(t.Context(), nil)
	_, tried := txguard.TryDo(t.Context(), nil, w.db, "job", never)
	for what, err := range map[string]error{
		"lock":         txguard.Run(t.Context(), nil, never),
		"the lock":     raised,
		"Locker":       txguard.Do(t.Context(), nil, w.db, "job", never),
		"sqllock.New":  tried,
		"*sql.DB":      txguard.Do(t.Context(), sqllock.New(&plain{}), nil, "job", never),
		"the function": txguard.Do(t.Context(), sqllock.New(&plain{}), w.db, "job", nil),
	} {
		if !errors.Is(err, txguard.ErrNotBegun) || !strings.Contains(err.Error(), what) {
			t.Errorf("got %v, want ErrNotBegun and %q in the text", err, what)
		}
	}
}
