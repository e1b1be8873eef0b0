// Leader is a service of several processes, one of which leads: it does what only one may
// do, such as starting the jobs that are due, until it ends or can't be reached. Then
// another one leads.
//
//	DSN=… go run ./examples/leader -ttl 10s
//
// The lock is a lease, and each step of the leader prolongs it. So a leader that was killed is
// replaced at once, and one that hangs when the TTL is over; one that gets SIGTERM hands on.
// With -without all of them lead.
package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/examples/internal/server"
	"github.com/sqllock/go-sqllock/sqllock"
)

func main() {
	ttl := flag.Duration("ttl", 10*time.Second, "how long the leader may be silent")
	server.Main("the lock", func(ctx context.Context, s *server.Server) error { return run(ctx, s, *ttl) })
}

func run(ctx context.Context, s *server.Server, ttl time.Duration) error {
	if err := s.Prepare(ctx); err != nil {
		return err
	}
	if s.Without {
		fmt.Println("leading")
		<-ctx.Done()
		return nil
	}
	locker := sqllock.New(s.Leases(ttl), sqllock.WithNamespace("scheduler"))
	lead := func(ctx context.Context, lock *sqllock.Lock) error { return lead(ctx, s, lock, ttl) }
	for {
		ran, err := locker.TryDo(ctx, s.DB, "leader", lead)
		if err == nil && !ran {
			fmt.Println("following")
			err = locker.Do(ctx, s.DB, "leader", lead) // waits, on the server
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // SIGTERM is how it ends
		}
		if err != nil { // no longer the leader, or the server can't be reached: try again
			fmt.Println("not leading:", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// lead does the steps of the leader until ctx ends: with the process, or with the lock.
func lead(ctx context.Context, s *server.Server, lock *sqllock.Lock, ttl time.Duration) error {
	fmt.Println("leading")
	steps := time.NewTicker(ttl / 4)
	defer steps.Stop()
	for {
		if err := lock.Extend(ctx, ttl); err != nil {
			return err
		}
		// Here goes what only the leader does. It has to stop when ctx ends. What it sends
		// to others can carry lock.Token(), so that they can refuse a leader of before.
		if err := s.Work(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-steps.C:
		}
	}
}
