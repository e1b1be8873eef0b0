package inprocess_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"

	_ "github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/inprocess"
)

// TestLock: the server is refused as one that only resembles MySQL, and does
// what the demo needs if it is allowed.
func TestLock(t *testing.T) {
	dsn, stop, err := inprocess.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // nothing depends on it
	never := func(context.Context, *sqllock.Lock) error { t.Error("ran"); return nil }
	if err := sqllock.New(mysqlnamed.New()).Do(t.Context(), db, "invoices", never); !errors.Is(err, sqllock.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
	k := sqllock.New(mysqlnamed.New(mysqlnamed.Allow(mysqlnamed.Lookalike)))
	err = k.Do(t.Context(), db, "invoices", func(ctx context.Context, l *sqllock.Lock) error {
		if ran, err := k.TryDo(ctx, db, "invoices", never); ran || err != nil {
			t.Errorf("TryDo of a lock that is held: %v, %v", ran, err)
		}
		h, err := k.Holder(ctx, db, "invoices")
		if err != nil || h.Session != l.Grant().Session {
			t.Errorf("Holder: %+v, %v", h, err)
		}
		// The session ends: the lock is lost, and free.
		if _, err := db.ExecContext(ctx, fmt.Sprintf("KILL CONNECTION %d", l.Grant().Session)); err != nil {
			t.Errorf("KILL: %v", err)
		}
		<-ctx.Done()
		return nil
	})
	if !errors.Is(err, sqllock.ErrLost) {
		t.Errorf("Do whose session was killed: %v, want ErrLost", err)
	}
}
