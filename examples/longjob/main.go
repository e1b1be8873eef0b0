// Longjob works for hours, and must not keep the others from it when it hangs: its lock is
// a lease, and each page of work is a heartbeat.
//
//	DSN=… go run ./examples/longjob -ttl 30s -pause 10s
//
// Start it twice: the second one waits. Stop the first with SIGSTOP: when the TTL is over
// the second one ends its session, and goes on. The first finds out when it wakes up, and
// what it had begun has been rolled back. With -without both do the same pages.
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/examples/internal/server"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"
)

func main() {
	ttl := flag.Duration("ttl", 30*time.Second, "how long it may be silent")
	server.Main("the lock", func(ctx context.Context, s *server.Server) error { return run(ctx, s, *ttl) })
}

func run(ctx context.Context, s *server.Server, ttl time.Duration) error {
	err := s.Prepare(ctx, server.Table{Name: "pages", Columns: "id bigint PRIMARY KEY, exported bigint NOT NULL", Rows: "(1,0),(2,0),(3,0),(4,0)"})
	if err != nil {
		return err
	}
	if s.Without {
		return withoutLock(ctx, s)
	}
	locker := sqllock.New(s.Leases(ttl), sqllock.WithNamespace("shop"))
	err = locker.Do(ctx, s.DB, "export", func(ctx context.Context, lock *sqllock.Lock) error {
		for {
			if err := lock.Extend(ctx, ttl); err != nil { // the heartbeat
				return err
			}
			page := page{s: s}
			if err := txguard.Run(ctx, lock, page.export); err != nil || page.last {
				return err
			}
		}
	})
	if errors.Is(err, sqllock.ErrLost) {
		return fmt.Errorf("another one has gone on, since this one was silent for too long: %w", err)
	}
	return err
}

// page is the next one to export.
type page struct {
	s    *server.Server
	last bool // there is none left
}

// export has to take less than the TTL.
func (p *page) export(ctx context.Context, tx *sql.Tx) error {
	ids, err := p.s.Numbers(ctx, tx, "SELECT id FROM pages WHERE exported = 0 ORDER BY id LIMIT 1")
	if err != nil || len(ids) == 0 {
		p.last = true
		return err
	}
	fmt.Println("page", ids[0])
	if err := p.s.Work(ctx); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, p.s.SQL("UPDATE pages SET exported = exported + 1 WHERE id = ?"), ids[0])
	return err
}

func withoutLock(ctx context.Context, s *server.Server) error {
	for {
		tx, err := s.DB.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		page := page{s: s}
		if err := page.export(ctx, tx); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		if err := tx.Commit(); err != nil || page.last {
			return err
		}
	}
}
