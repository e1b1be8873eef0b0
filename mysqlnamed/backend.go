package mysqlnamed

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

const (
	// answerTime is how long a statement may take beyond what it is asked to
	// wait. Its end costs the session, so it is long for a live server.
	answerTime = 5 * time.Second

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

// Backend is the lock backend on GET_LOCK. It is safe for concurrent use.
type Backend struct {
	control *sql.DB
	allowed Risk

	mu    sync.Mutex    // guards kinds
	kinds map[kind]bool // what has passed a look
}

var _ sqllock.Backend = (*Backend)(nil)

// New returns a backend. It does nothing until the first lock.
func New(opts ...Option) *Backend {
	b := &Backend{kinds: make(map[kind]bool)}
	for _, o := range opts {
		o.apply(b)
	}
	return b
}

// Acquire tries, and then waits in slices. See the package's documentation.
func (b *Backend) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	looked := b.untried()
	if looked {
		if err := b.look(ctx, conn); err != nil {
			return sqllock.Grant{}, err
		}
	}
	var (
		verdict, id       sql.NullInt64
		version, readOnly sql.NullString
	)
	err := ask(ctx, conn, tryQuery(req.Key), &verdict, &id, &version, &readOnly)
	if err == nil && !verdict.Valid {
		err = interrupted()
	}
	if errors.Is(err, sqllock.ErrInterrupted) {
		return sqllock.Grant{}, afterTry(ctx, conn, req.Key, err)
	}
	if err != nil {
		return sqllock.Grant{}, err
	}
	g := sqllock.Grant{Key: req.Key, Session: id.Int64}
	k := kind{version.String, readOnly.String}
	if !b.admitted(k) {
		if !looked {
			err = b.look(ctx, conn)
		}
		if err != nil {
			if verdict.Int64 == granted {
				err = letGo(ctx, conn, req.Key, err)
			}
			return sqllock.Grant{}, err
		}
		b.admit(k)
	}
	for ; ; verdict.Int64, err = b.wait(ctx, conn, g, k.mariaDB()) {
		switch {
		case err != nil:
			return sqllock.Grant{}, err
		case verdict.Int64 == granted:
			return g, nil
		case verdict.Int64 == heldBySession:
			return sqllock.Grant{}, sqllock.ErrHeld
		case !req.Wait || ended(ctx):
			return sqllock.Grant{}, sqllock.ErrBusy
		}
	}
}

// ended reports whether ctx has ended, or has too little time left to be a wait
// on the server.
func ended(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(deadline) < time.Millisecond
}

// wait waits on the server for one slice. If ctx ends meanwhile, the session is
// left without the lock, and the verdict is that it is taken.
func (b *Backend) wait(ctx context.Context, conn *sql.Conn, g sqllock.Grant, mariaDB bool) (verdict int64, err error) {
	d := slice
	if b.control != nil {
		d = controlledSlice
	}
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(deadline))
	}
	mark := rand.Text()
	stmt, giveUp := context.WithTimeout(context.WithoutCancel(ctx), d+answerTime)
	defer giveUp()

	answered := make(chan struct{})
	kill := make(chan error, 1)
	unwatch := context.AfterFunc(ctx, func() {
		err := b.interrupt(ctx, g.Session, mark, answered)
		if err != nil {
			giveUp()
		}
		kill <- err
	})
	var answer sql.NullInt64
	err = classify(session.Row(stmt, conn, waitQuery(g.Key, d, mariaDB, mark), &answer))
	close(answered)
	if !unwatch() {
		// ctx has ended. The KILL, if there was one, has been answered before
		// anything else is sent.
		if killErr := <-kill; killErr != nil {
			return 0, fmt.Errorf("%w: the wait could not be ended over the control pool: %w", sqllock.ErrSessionGone, killErr)
		}
	}
	if err == nil && !answer.Valid {
		err = interrupted()
	}
	switch {
	case errors.Is(err, sqllock.ErrSessionGone):
		return 0, err
	case ctx.Err() != nil && (err == nil || errors.Is(err, sqllock.ErrInterrupted)):
		if answer.Int64 == heldBySession {
			return heldBySession, nil
		}
		return taken, letGo(ctx, conn, g.Key, nil)
	case errors.Is(err, sqllock.ErrInterrupted):
		err = letGo(ctx, conn, g.Key, err)
		if number(err) == timeLimit {
			// The hint ended the statement: the slice is over.
			return taken, nil
		}
		return 0, err
	}
	return answer.Int64, err
}

// interrupt ends the statement with the mark on session id by KILL QUERY, and
// returns when answered is closed. A ctx that ended by its deadline needs no
// KILL, since the wait is no longer than that. Neither can there be one without
// a control pool; the slice runs out.
func (b *Backend) interrupt(ctx context.Context, id int64, mark string, answered <-chan struct{}) error {
	if b.control == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
	defer cancel()
	err := b.killUntil(ctx, id, mark, answered)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("the wait of session %d went on for %v, or could not be seen: "+
			"does the control pool lead to the same server, and has it a connection to spare?", id, killTime)
	}
	return err
}

func (b *Backend) killUntil(ctx context.Context, id int64, mark string, answered <-chan struct{}) error {
	control, err := b.control.Conn(ctx)
	if err != nil {
		return err
	}
	defer control.Close() //nolint:errcheck // the KILL is what counts
	pause := time.NewTicker(killPause)
	defer pause.Stop()
	for {
		var running int
		if err := control.QueryRowContext(ctx, markedQuery(id, mark)).Scan(&running); err != nil {
			return err
		}
		if running > 0 {
			// 1094: the session has ended in the meantime.
			if _, err := control.ExecContext(ctx, killQuery(id)); err != nil && number(err) != unknownThread {
				return err
			}
		}
		select {
		case <-answered:
			return nil
		case <-pause.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// letGo frees key if the session has been granted it by a statement that was
// interrupted or is no longer wanted, and returns err, unless the session has
// to be given up for it. The session did not hold key before that statement.
func letGo(ctx context.Context, conn *sql.Conn, key string, err error) error {
	var freed sql.NullInt64
	failed := ask(ctx, conn, releaseQuery(key), &freed)
	if errors.Is(failed, sqllock.ErrInterrupted) {
		failed = ask(ctx, conn, releaseQuery(key), &freed)
	}
	if failed == nil {
		return err
	}
	return fmt.Errorf("%w: it may hold the lock after an interrupted wait: %w", sqllock.ErrSessionGone, failed)
}

// afterTry returns err, the interruption of a try. If the session holds the
// lock now, nobody knows whether it had done so before.
func afterTry(ctx context.Context, conn *sql.Conn, key string, err error) error {
	var held sql.NullBool
	failed := ask(ctx, conn, checkQuery(key), &held)
	if failed != nil {
		return fmt.Errorf("%w: it may hold the lock after an interrupted try: %w", sqllock.ErrSessionGone, failed)
	}
	if held.Bool {
		return fmt.Errorf("%w: it holds the lock after an interrupted try, maybe for the second time: %w", sqllock.ErrSessionGone, err)
	}
	return err
}

// Release frees g in one round trip. The driver is asked first whether the
// server has closed the connection, which tells a lock that was lost before
// from one whose release was cut off.
func (b *Backend) Release(ctx context.Context, conn *sql.Conn, g sqllock.Grant) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var freed sql.NullInt64
	alive, err := session.AliveRow(ctx, conn, releaseQuery(g.Key), &freed)
	err = understood(ctx, err)
	switch {
	case !alive || notSent(err):
		return fmt.Errorf("%w: %w", sqllock.ErrLost, err)
	case err != nil:
		return err
	case freed.Int64 != granted:
		return fmt.Errorf("%w: the session did not hold it any more", sqllock.ErrLost)
	}
	return nil
}

// Check asks whether the session under q holds g, in one round trip.
func (b *Backend) Check(ctx context.Context, q sqllock.Querier, g sqllock.Grant) error {
	var held sql.NullBool
	err := ask(ctx, q, checkQuery(g.Key), &held)
	switch {
	case errors.Is(err, sql.ErrConnDone):
		return fmt.Errorf("the conn is closed: the session broke, and the lock with it, or it went back to its pool: %w", err)
	case errors.Is(err, sqllock.ErrSessionGone):
		return fmt.Errorf("%w: %w", sqllock.ErrLost, err)
	case err != nil:
		return err
	case !held.Bool:
		return fmt.Errorf("%w: the session does not hold it any more", sqllock.ErrLost)
	}
	return nil
}

// Holder tells which session of the server holds key.
func (b *Backend) Holder(ctx context.Context, q sqllock.Querier, key string) (sqllock.Holder, error) {
	var id, since sql.NullInt64
	var user, host, database, state sql.NullString
	row := q.QueryRowContext(ctx, holderQuery(key))
	if err := session.Scan(row, &id, &user, &host, &database, &state, &since); err != nil {
		return sqllock.Holder{}, classify(err)
	}
	if !id.Valid {
		return sqllock.Holder{}, fmt.Errorf("%w: it is free", sqllock.ErrNotHeld)
	}
	h := sqllock.Holder{Session: id.Int64, User: user.String, Host: host.String, Database: database.String, State: state.String}
	if since.Valid {
		h.Since = time.Unix(since.Int64, 0)
	}
	return h, nil
}

// ask runs a statement that answers with one row at once. The end of ctx does
// not reach it; it has a bound of its own.
func ask(ctx context.Context, q sqllock.Querier, query string, dest ...sql.Scanner) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
	defer cancel()
	var err error
	if conn, ok := q.(*sql.Conn); ok {
		err = session.Row(ctx, conn, query, dest...)
	} else {
		err = session.Scan(q.QueryRowContext(ctx, query), dest...)
	}
	return understood(ctx, err)
}

// understood is classify for a statement whose bound was that of ctx.
func understood(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: the server did not answer within %v", sqllock.ErrSessionGone, answerTime)
	}
	return classify(err)
}

const (
	unknownThread = 1094 // ER_NO_SUCH_THREAD
	timeLimit     = 3024 // ER_QUERY_TIMEOUT
)

func number(err error) uint16 {
	if answer, ok := serverError(err); ok {
		return answer.Number
	}
	return 0
}

func interrupted() error {
	return fmt.Errorf("%w: GET_LOCK returned NULL", sqllock.ErrInterrupted)
}
