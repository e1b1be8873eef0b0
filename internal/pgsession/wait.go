package pgsession

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

const (
	// cancelPause is how long a cancel request has to end its statement before it is
	// sent again, since one that comes before the statement ends nothing; and
	// cancelTime how long all of them have together.
	cancelPause = 20 * time.Millisecond
	cancelTime  = AnswerTime

	// slice is the longest wait in one statement. It keeps a connection from being
	// silent for so long that something on its way forgets it, or a server that is
	// gone from being waited for for ever.
	slice = time.Minute
)

// Ended reports whether ctx has ended, or has too little time left to be a wait
// on the server.
func Ended(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(deadline) < time.Millisecond
}

// Slice is the longest wait in one statement: no more than limit, and no more than
// the deadline of ctx allows.
func Slice(ctx context.Context, limit time.Duration) time.Duration {
	d := min(limit, slice)
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(deadline))
	}
	return max(d, time.Millisecond)
}

// Wait runs lock, a statement that waits for an advisory lock for at most d. Whether the lock is there when it returns an error, the
// server has to be asked: it may have been granted all the same. ctx that is cancelled
// ends the wait by a cancel request, which is answered when Wait returns. In a
// transaction the statement runs behind a savepoint, to which it is taken back whatever
// becomes of it; locks of a session's survive that.
//
// The limits of the session on locks, statements and transactions are put aside while
// the statement runs.
func (s *Session) Wait(ctx context.Context, d time.Duration, lock string) error {
	inTx := s.Tx() == Open
	query := s.limits(d) + lock
	if inTx {
		query = savepoint + query + ";" + Undo
	}
	err := s.cancellable(ctx, query, d+AnswerTime, nil)
	if err != nil && inTx && !errors.Is(err, sqllock.ErrSessionGone) {
		if failed := s.Ask(Undo); failed != nil && !errors.Is(failed, sqllock.ErrSessionGone) {
			return fmt.Errorf("%w: the transaction could not be taken back to where it was: %w", sqllock.ErrSessionGone, failed)
		} else if failed != nil {
			return failed
		}
	}
	return err
}

const savepoint = "SAVEPOINT go_sqllock;"

// Undo takes a transaction back to its savepoint, and removes that.
const Undo = "ROLLBACK TO SAVEPOINT go_sqllock;RELEASE SAVEPOINT go_sqllock"

// LimitedTx makes statements of lock, which is kept by its transaction, that wait for at
// most d behind a savepoint. On success it is removed, and the limits are as they were;
// after an error [Undo] does that.
func LimitedTx(d time.Duration, lock string) string {
	const keep = "SELECT set_config('go_sqllock.a',current_setting('lock_timeout'),true),set_config('go_sqllock.b',current_setting('statement_timeout'),true);"
	const back = ";SELECT set_config('lock_timeout',current_setting('go_sqllock.a'),true),set_config('statement_timeout',current_setting('go_sqllock.b'),true);"
	return savepoint + keep + "SELECT set_config('lock_timeout','" + milliseconds(d) + "',true),set_config('statement_timeout','0',true);" +
		lock + back + "RELEASE SAVEPOINT go_sqllock"
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(max(d.Milliseconds(), 1), 10) }

// limits are settings of the transaction alone, which is an implicit one, or taken back.
func (s *Session) limits(d time.Duration) string {
	q := "SELECT set_config('lock_timeout','" + milliseconds(d) + "',true),set_config('statement_timeout','0',true)"
	if s.seesClosed() { // a waiter whose process is gone is to go, too
		q += ",set_config('client_connection_check_interval','1000',true)"
	}
	if s.version() >= 17 {
		q += ",set_config('transaction_timeout','0',true)"
	}
	return q + ";"
}

// seesClosed reports whether the server can notice that a client is gone while it runs a
// statement of that: PostgreSQL 14 on Linux, 15 elsewhere, but not on Windows.
func (s *Session) seesClosed() bool {
	system := s.Known().version
	if strings.Contains(system, "linux") {
		return s.version() >= 14
	}
	windows := strings.Contains(system, "visual c++") || strings.Contains(system, "msvc") || strings.Contains(system, "mingw") || strings.Contains(system, "windows")
	return s.version() >= 15 && !windows
}

// version is the major version of the server, as it said when the session began; 0 if it did not.
func (s *Session) version() int {
	text := s.pg.ParameterStatus("server_version")
	end := 0
	for end < len(text) && text[end] >= '0' && text[end] <= '9' {
		end++
	}
	n, _ := strconv.Atoi(text[:end]) // 0 if there is none
	return n
}

// cancellable is run for a query that ctx may end on the server.
func (s *Session) cancellable(ctx context.Context, query string, bound time.Duration, dest []sql.Scanner) error {
	running, answered := context.WithCancel(context.WithoutCancel(ctx))
	defer answered()
	canceled := make(chan error, 1)
	unwatch := context.AfterFunc(ctx, func() { canceled <- s.cancel(ctx, running) })
	err := s.run(query, bound, dest)
	answered()
	if !unwatch() {
		// ctx has ended. The cancel request, if there was one, has been answered before
		// anything else is sent.
		if failed := <-canceled; failed != nil {
			return fmt.Errorf("%w: the wait could not be cancelled: %w", sqllock.ErrSessionGone, failed)
		}
	}
	return err
}

// cancel ends what runs on the session, and returns when it has ended, which the end
// of running tells. A ctx with a deadline that has passed needs no request, since the
// wait is no longer than that.
func (s *Session) cancel(ctx, running context.Context) error {
	if _, ok := ctx.Deadline(); ok && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil
	}
	limited, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelTime)
	defer stop()
	for running.Err() == nil {
		if err := s.pg.CancelRequest(limited); err != nil || limited.Err() != nil {
			if running.Err() != nil {
				return nil // it ended by itself
			}
			_ = s.pg.Conn().SetDeadline(time.Now()) // ends the statement here, and the session
			if limited.Err() != nil {
				return fmt.Errorf("the server took no cancel request for %v", cancelTime)
			}
			return fmt.Errorf("the cancel request, on a connection of its own: %v", err) //nolint:errorlint // its ctx is not the caller's
		}
		select {
		case <-running.Done():
		case <-limited.Done():
		case <-time.After(cancelPause):
		}
	}
	return nil
}
