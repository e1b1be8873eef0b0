package userlock

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

const (
	// slice is the longest wait in one statement when only its end can end it;
	// controlledSlice when a KILL QUERY can: longer, for a place in the server's
	// queue, but below what people set as the readTimeout of a DSN.
	slice           = time.Second
	controlledSlice = 4 * time.Second

	// killPause is how long a KILL QUERY has to end its statement before it is
	// sent again, and killTime how long all of them have together.
	killPause = 20 * time.Millisecond
	killTime  = 2 * time.Second
)

// Waiter is a session that may wait in GET_LOCK.
type Waiter struct {
	Version string  // of the server
	Control *sql.DB // for ending the wait at once, or nil
	Guard   string  // a condition for waiting at all, or ""
}

// Slice is the longest wait in one statement: a second, or four where a
// cancellation can end it from outside; no more than limit, and no more than the
// deadline of ctx allows.
func (w Waiter) Slice(ctx context.Context, limit time.Duration) time.Duration {
	d := min(limit, slice)
	if w.Control != nil {
		d = min(limit, controlledSlice)
	}
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(deadline))
	}
	return d
}

// Wait waits on the server for lock, for at most d. If ctx ends meanwhile, the
// session is left without the lock, and the verdict is that it is taken.
func (w Waiter) Wait(ctx context.Context, s *session.Session, lock string, d time.Duration) (verdict int64, err error) {
	stmt, giveUp := context.WithTimeout(context.WithoutCancel(ctx), d+AnswerTime)
	defer giveUp()
	running, answered := context.WithCancel(context.WithoutCancel(ctx))
	defer answered()

	mark := rand.Text()
	kill := make(chan error, 1)
	unwatch := context.AfterFunc(ctx, func() {
		err := w.interrupt(ctx, running, mark)
		if err != nil {
			giveUp()
		}
		kill <- err
	})
	var answer sql.NullInt64
	err = understood(stmt, s.Row(stmt, w.query(lock, d, mark), &answer))
	answered()
	if !unwatch() {
		// ctx has ended. The KILL, if there was one, has been answered before
		// anything else is sent.
		if killErr := <-kill; killErr != nil {
			return Taken, fmt.Errorf("%w: the wait could not be ended over the pool that was lent: %w", sqllock.ErrSessionGone, killErr)
		}
	}
	if err == nil && !answer.Valid {
		err = Interrupted()
	}
	switch {
	case err != nil && !errors.Is(err, sqllock.ErrInterrupted):
		return Taken, err
	case err == nil && (ctx.Err() == nil || answer.Int64 < Taken):
		return answer.Int64, nil
	case ctx.Err() != nil || Number(err) == timeLimit:
		// Given up, or the end of a slice that the hint cut short.
		return Taken, LetGo(ctx, s, lock, nil)
	}
	return Taken, LetGo(ctx, s, lock, err)
}

// interrupt ends the statement with the mark on the session by KILL QUERY, and
// returns when it has ended, which the end of running tells. A ctx with a
// deadline that has passed needs no KILL, since the wait is no longer than that.
// Neither can there be one without a control pool; the slice runs out.
func (w Waiter) interrupt(ctx, running context.Context, mark string) error {
	if _, ok := ctx.Deadline(); w.Control == nil || ok && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil
	}
	control, err := w.controlConn(running)
	if err != nil {
		return err
	}
	if control == nil {
		return nil
	}
	defer control.Close() //nolint:errcheck // the KILL is what counts
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
	defer cancel()
	pause := time.NewTicker(killPause)
	defer pause.Stop()
	for {
		var id int64
		err := control.QueryRowContext(ctx, markedQuery(mark)).Scan(&id)
		if running.Err() != nil {
			return nil // by itself
		}
		if err == nil && id > 0 {
			_, err = control.ExecContext(ctx, killQuery(id))
		}
		if err != nil && ctx.Err() == nil && Number(err) != UnknownThread { // 1094: the session has ended
			return err
		}
		select {
		case <-running.Done():
			if ctx.Err() != nil {
				return errNoKill() // one may still be on its way
			}
			return nil
		case <-pause.C:
		case <-ctx.Done():
			return errNoKill()
		}
	}
}

// controlConn takes a connection of the control pool. It returns nil if the
// wait has ended before there was one.
func (w Waiter) controlConn(running context.Context) (*sql.Conn, error) {
	ctx, cancel := context.WithTimeout(running, killTime)
	defer cancel()
	conn, err := w.Control.Conn(ctx)
	switch {
	case err == nil:
		return conn, nil
	case running.Err() != nil:
		return nil, nil //nolint:nilnil // no connection is needed any more
	case ctx.Err() != nil:
		return nil, fmt.Errorf("it had no connection to spare for %v", killTime)
	}
	return nil, err
}

func errNoKill() error {
	return fmt.Errorf("the session was not seen to end its wait for %v; does that pool lead to the same server?", killTime)
}
