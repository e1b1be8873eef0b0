package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// settings say what is recorded.
type settings struct {
	ttl  time.Duration
	work time.Duration // how long each of them works, for the eye
	rows int           // that the holder writes, and the server has to roll back
}

// recording is a takeover: when things happened, from the start on.
type recording struct {
	settings

	server string

	granted     time.Duration // the holder has the lock
	wrote       time.Duration // its transaction has written; from here on it hangs
	nextWaits   time.Duration // two others wait
	thirdWaits  time.Duration
	obsolete    time.Duration // the TTL is over, by the clock of the server
	killed      time.Duration // one of them has ended the session of the holder
	uncommitted time.Duration // what the holder wrote was seen, READ UNCOMMITTED, for the last time
	nextGranted time.Duration // one of them has the lock
	woke        time.Duration // the holder goes on, to its COMMIT
	refused     time.Duration // which it may not
	committed   time.Duration // the work of the next, who then lets go
	third       time.Duration // the other one has the lock
	end         time.Duration

	tokens   [3]int64
	seen     [3]int // the stock as each of them found it
	left     int    // the stock in the end
	sessions [3]int64
	victim   int64 // the session that was killed
	refusal  error // what the holder got
}

// recorder plays it.
type recorder struct {
	recording

	db    *sql.DB
	start time.Time

	mu   sync.Mutex // guards the recording while goroutines run
	errs []error
}

func (r *recorder) at(moment *time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if *moment == 0 {
		*moment = time.Since(r.start)
	}
}

func (r *recorder) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.errs = append(r.errs, err)
	}
}

// record plays a takeover on a server of our own.
func record(ctx context.Context, s *testdb.Server, set settings) (*recording, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r := &recorder{recording: recording{settings: set}}
	if err := r.prepare(ctx, s); err != nil {
		return nil, err
	}
	defer r.db.Close() //nolint:errcheck // nothing depends on it
	if err := r.play(ctx); err != nil {
		return nil, err
	}
	err := r.db.QueryRowContext(ctx, "SELECT n, VERSION() FROM stock").Scan(&r.left, &r.server)
	return &r.recording, err
}

func (r *recorder) prepare(ctx context.Context, s *testdb.Server) error {
	admin, err := testdb.OpenDB(s.DSN, nil)
	if err != nil {
		return err
	}
	defer admin.Close() //nolint:errcheck // nothing depends on it
	if _, err := admin.ExecContext(ctx, "CREATE DATABASE takeover"); err != nil {
		return err
	}
	r.db, err = testdb.OpenDB(s.DSN, func(c *mysql.Config) { c.DBName = "takeover" })
	if err != nil {
		return err
	}
	if err := migrations.Up(ctx, r.db); err != nil {
		return err
	}
	for _, statement := range []string{
		"CREATE TABLE stock (n int NOT NULL) ENGINE=InnoDB",
		"INSERT INTO stock VALUES (100)",
		"CREATE TABLE sold (id int NOT NULL PRIMARY KEY, what varchar(100) NOT NULL) ENGINE=InnoDB",
	} {
		if _, err := r.db.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// play has one hold the lock and hang, and two wait for it.
func (r *recorder) play(ctx context.Context) error {
	wrote, wake, refused := make(chan struct{}), make(chan struct{}), make(chan struct{})
	r.start = time.Now()
	var holder, others sync.WaitGroup
	holder.Go(func() {
		defer close(refused)
		r.hold(ctx, wrote, wake)
	})
	select {
	case <-wrote:
	case <-refused:
		return errors.Join(append(r.errs, errors.New("the holder has ended too soon"))...)
	}
	over, err := r.expiry(ctx)
	if err != nil {
		return err
	}
	grants := make(chan struct{}, 2) // tells the first of them from the second
	grants <- struct{}{}
	for i, moment := range []*time.Duration{&r.nextWaits, &r.thirdWaits} {
		others.Go(func() { r.wait(ctx, moment, grants, wake, refused) })
		if err := r.waiters(ctx, i+1); err != nil {
			return err
		}
	}
	r.mu.Lock()
	r.obsolete = over
	r.mu.Unlock()
	watched := make(chan struct{})
	watch, stop := context.WithCancel(ctx)
	go func() {
		defer close(watched)
		r.fail(r.watch(watch))
	}()
	others.Wait()
	holder.Wait()
	stop()
	<-watched
	r.at(&r.end)
	return errors.Join(r.errs...)
}

// hold is the holder: it writes, hangs, wakes up, and would commit.
func (r *recorder) hold(ctx context.Context, wrote, wake chan struct{}) {
	locker := sqllock.New(table.New(r.ttl, table.WithPool(r.db)), sqllock.WithObserver(func(e sqllock.Event) {
		if e.Kind == sqllock.Acquired {
			r.at(&r.granted)
			r.mu.Lock()
			r.tokens[0] = e.Token
			r.mu.Unlock()
		}
	}))
	err := txguard.Do(ctx, locker, r.db, "stock", func(ctx context.Context, tx *sql.Tx) error {
		if err := r.take(ctx, tx, 0); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO sold SELECT /*+ SET_VAR(cte_max_recursion_depth=%d) */ * FROM (WITH RECURSIVE r(id) AS (SELECT 1 UNION ALL SELECT id+1 FROM r WHERE id < %[1]d) SELECT id, REPEAT('x', 100) FROM r) rows_", r.rows))
		if err != nil {
			return err
		}
		r.at(&r.wrote)
		close(wrote)
		<-wake // it hangs
		r.at(&r.woke)
		return nil
	})
	r.at(&r.refused)
	r.mu.Lock()
	r.refusal = err
	r.mu.Unlock()
}

// take takes one from the stock, and notes how it found it.
func (r *recorder) take(ctx context.Context, tx *sql.Tx, who int) error {
	var n int
	var session int64
	if err := tx.QueryRowContext(ctx, "SELECT n, CONNECTION_ID() FROM stock").Scan(&n, &session); err != nil {
		return err
	}
	r.mu.Lock()
	r.seen[who], r.sessions[who] = n, session
	r.mu.Unlock()
	_, err := tx.ExecContext(ctx, "UPDATE stock SET n = ?", n-1)
	return err
}

// wait is one of the others. The first of them to be granted the lock wakes the holder, and
// commits when that has been refused.
func (r *recorder) wait(ctx context.Context, waits *time.Duration, grants <-chan struct{}, wake, refused chan struct{}) {
	who := 2
	locker := sqllock.New(table.New(time.Minute, table.WithPool(r.db)), sqllock.WithObserver(func(e sqllock.Event) {
		switch e.Kind {
		case sqllock.Killed:
			r.at(&r.killed)
			r.mu.Lock()
			r.victim = e.Holder.Session
			r.mu.Unlock()
		case sqllock.Acquired:
			moment := &r.third
			select {
			case <-grants:
				who, moment = 1, &r.nextGranted
			default:
			}
			r.at(moment)
			r.mu.Lock()
			r.tokens[who] = e.Token
			r.mu.Unlock()
		default:
		}
	}))
	r.at(waits)
	err := locker.Do(ctx, r.db, "stock", func(ctx context.Context, lock *sqllock.Lock) error {
		err := txguard.Run(ctx, lock, func(ctx context.Context, tx *sql.Tx) error {
			if err := r.take(ctx, tx, who); err != nil || who == 2 {
				return err
			}
			time.Sleep(r.work)
			close(wake)
			<-refused
			time.Sleep(r.work)
			return nil
		})
		if who == 1 {
			r.at(&r.committed)
		}
		return err
	})
	r.fail(err)
}

// waiters polls until so many wait on the doorbell.
func (r *recorder) waiters(ctx context.Context, want int) error {
	for {
		var n int
		err := r.db.QueryRowContext(ctx, "SELECT COUNT(*) FROM performance_schema.metadata_locks WHERE object_type='USER LEVEL LOCK' AND object_name='stock' AND lock_status='PENDING'").Scan(&n)
		if err != nil || n == want {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// expiry asks when the TTL is over.
func (r *recorder) expiry(ctx context.Context) (time.Duration, error) {
	now := time.Since(r.start)
	h, err := sqllock.New(table.New(r.ttl)).Holder(ctx, r.db, "stock")
	return now + h.TimeLeft, err
}

// watch looks, until ctx ends, for the last time that what the holder wrote is there and
// not committed. It was so when it was asked for, or later.
func (r *recorder) watch(ctx context.Context) error {
	conn, err := r.db.Conn(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing depends on it
	if _, err := conn.ExecContext(context.WithoutCancel(ctx), "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED"); err != nil {
		return err
	}
	for ctx.Err() == nil {
		asked := time.Since(r.start)
		var n int
		if err := conn.QueryRowContext(context.WithoutCancel(ctx), "SELECT COUNT(*) FROM (SELECT 1 FROM sold LIMIT 1) any_").Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			r.mu.Lock()
			r.uncommitted = asked
			r.mu.Unlock()
		}
		time.Sleep(100 * time.Microsecond)
	}
	return nil
}
