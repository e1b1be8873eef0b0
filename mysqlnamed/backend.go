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

	mu    sync.Mutex      // guards kinds
	kinds map[kind]string // what has passed a look, and the version seen
}

var _ sqllock.Backend = (*Backend)(nil)

// New returns a backend. It does nothing until the first lock.
func New(opts ...Option) *Backend {
	b := &Backend{kinds: make(map[kind]string)}
	for _, o := range opts {
		o.apply(b)
	}
	return b
}

// Acquire tries, and then waits in slices. See the package's documentation.
func (b *Backend) Acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request) (sqllock.Grant, error) {
	a := attempt{b: b, key: req.Key}
	err := use(conn, func(s *session.Session) error { return a.try(ctx, s) })
	for err == nil && a.verdict == taken && req.Wait && !ended(ctx) {
		err = use(conn, func(s *session.Session) error { return a.wait(ctx, s) })
	}
	switch {
	case err != nil:
		return sqllock.Grant{}, err
	case a.verdict == heldBySession:
		return sqllock.Grant{}, sqllock.ErrHeld
	case a.verdict != granted:
		return sqllock.Grant{}, sqllock.ErrBusy
	}
	return sqllock.Grant{Key: req.Key, Session: a.id}, nil
}

// use is session.Use where a closed conn is a session that is gone.
func use(conn *sql.Conn, f func(*session.Session) error) error {
	err := session.Use(conn, f)
	if errors.Is(err, sql.ErrConnDone) {
		return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, err)
	}
	return err
}

// ended reports whether ctx has ended, or has too little time left to be a wait
// on the server.
func ended(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(deadline) < time.Millisecond
}

// attempt is an Acquire under way. Each of its methods leaves the session either
// with the lock, and the verdict granted, or as it was before.
type attempt struct {
	b       *Backend
	key     string
	id      int64  // of the session
	version string // of the server
	verdict int64
}

// try takes the lock if it is free, after a look at the server if that is due.
func (a *attempt) try(ctx context.Context, s *session.Session) (err error) {
	first := a.b.untried()
	if first {
		if a.version, err = a.b.look(ctx, s); err != nil {
			return err
		}
	}
	var verdict, id, port sql.NullInt64
	var host, readOnly sql.NullString
	err = ask(ctx, s, tryQuery(a.key), &verdict, &id, &host, &port, &readOnly)
	if err == nil && !verdict.Valid {
		err = interrupted()
	}
	if errors.Is(err, sqllock.ErrInterrupted) {
		return afterTry(ctx, s, a.key, err)
	}
	if err != nil {
		return err
	}
	a.verdict, a.id = verdict.Int64, id.Int64
	k := kind{host.String, port.Int64, readOnly.String}
	if version, ok := a.b.admitted(k); ok {
		a.version = version
		return nil
	}
	if !first {
		a.version, err = a.b.look(ctx, s)
	}
	if err == nil {
		a.b.admit(k, a.version)
		return nil
	}
	if a.verdict == granted {
		return letGo(ctx, s, a.key, err)
	}
	return err
}

// wait waits on the server for one slice. If ctx ends meanwhile, the session is
// left without the lock, and the verdict is that it is taken.
func (a *attempt) wait(ctx context.Context, s *session.Session) error {
	d := slice
	if a.b.control != nil {
		d = controlledSlice
	}
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(deadline))
	}
	stmt, giveUp := context.WithTimeout(context.WithoutCancel(ctx), d+answerTime)
	defer giveUp()
	running, answered := context.WithCancel(context.WithoutCancel(ctx))
	defer answered()

	mark := rand.Text()
	kill := make(chan error, 1)
	unwatch := context.AfterFunc(ctx, func() {
		err := a.b.interrupt(ctx, running, a.id, mark)
		if err != nil {
			giveUp()
		}
		kill <- err
	})
	var verdict sql.NullInt64
	err := understood(stmt, s.Row(stmt, waitQuery(a.key, d, a.version, mark), &verdict))
	answered()
	if !unwatch() {
		// ctx has ended. The KILL, if there was one, has been answered before
		// anything else is sent.
		if killErr := <-kill; killErr != nil {
			return fmt.Errorf("%w: the wait could not be ended over the control pool: %w", sqllock.ErrSessionGone, killErr)
		}
	}
	if err == nil && !verdict.Valid {
		err = interrupted()
	}
	a.verdict = verdict.Int64
	switch {
	case err != nil && !errors.Is(err, sqllock.ErrInterrupted):
		return err
	case err == nil && (ctx.Err() == nil || a.verdict == heldBySession):
		return nil
	case ctx.Err() != nil || number(err) == timeLimit:
		// Given up, or the end of a slice that the hint cut short.
		a.verdict = taken
		return letGo(ctx, s, a.key, nil)
	}
	return letGo(ctx, s, a.key, err)
}

// interrupt ends the statement with the mark on session id by KILL QUERY, and
// returns when it has ended, which the end of running tells. A ctx with a
// deadline that has passed needs no KILL, since the wait is no longer than that.
// Neither can there be one without a control pool; the slice runs out.
func (b *Backend) interrupt(ctx, running context.Context, id int64, mark string) error {
	if _, ok := ctx.Deadline(); b.control == nil || ok && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil
	}
	control, err := b.controlConn(running)
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
		var seen int
		err := control.QueryRowContext(ctx, markedQuery(id, mark)).Scan(&seen)
		if running.Err() != nil {
			return nil // by itself
		}
		if err == nil && seen > 0 {
			_, err = control.ExecContext(ctx, killQuery(id))
		}
		if err != nil && ctx.Err() == nil && number(err) != unknownThread { // 1094: the session has ended
			return err
		}
		select {
		case <-running.Done():
			if ctx.Err() != nil {
				return errNoKill(id) // one may still be on its way
			}
			return nil
		case <-pause.C:
		case <-ctx.Done():
			return errNoKill(id)
		}
	}
}

// controlConn takes a connection of the control pool. It returns nil if the
// wait has ended before there was one.
func (b *Backend) controlConn(running context.Context) (*sql.Conn, error) {
	ctx, cancel := context.WithTimeout(running, killTime)
	defer cancel()
	conn, err := b.control.Conn(ctx)
	switch {
	case err == nil:
		return conn, nil
	case running.Err() != nil:
		return nil, nil //nolint:nilnil // no connection is needed any more
	case ctx.Err() != nil:
		return nil, fmt.Errorf("the control pool had no connection to spare for %v", killTime)
	}
	return nil, err
}

func errNoKill(id int64) error {
	return fmt.Errorf("session %d was not seen to end its wait for %v; does the control pool lead to the same server?", id, killTime)
}

// letGo frees key if the session has been granted it by a statement that was
// interrupted or is no longer wanted, and returns err, unless the session has
// to be given up for it. The session did not hold key before that statement.
func letGo(ctx context.Context, s *session.Session, key string, err error) error {
	var freed sql.NullInt64
	failed := ask(ctx, s, releaseQuery(key), &freed)
	if errors.Is(failed, sqllock.ErrInterrupted) {
		failed = ask(ctx, s, releaseQuery(key), &freed)
	}
	if failed == nil {
		return err
	}
	return fmt.Errorf("%w: it may hold the lock after an interrupted wait: %w", sqllock.ErrSessionGone, failed)
}

// afterTry returns err, the interruption of a try. If the session holds the
// lock now, nobody knows whether it had done so before.
func afterTry(ctx context.Context, s *session.Session, key string, err error) error {
	var held sql.NullBool
	failed := ask(ctx, s, checkQuery(key), &held)
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
	var freed sql.NullInt64
	err := session.Use(conn, func(s *session.Session) error {
		if err := s.Alive(ctx); err != nil {
			return fmt.Errorf("%w: %w: %w", sqllock.ErrLost, sqllock.ErrSessionGone, err)
		}
		return ask(ctx, s, releaseQuery(g.Key), &freed)
	})
	switch {
	case errors.Is(err, sqllock.ErrLost):
		return err
	case notSent(err):
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
	err := askOver(ctx, q, checkQuery(g.Key), &held)
	switch {
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
	if err := askOver(ctx, q, holderQuery(key), &id, &user, &host, &database, &state, &since); err != nil {
		return sqllock.Holder{}, err
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

// askOver is ask for every Querier. What is no session of the caller's, like a
// *sql.DB, takes the end of ctx well; a transaction is given time to answer, and
// has to live with what becomes of it if it does not.
func askOver(ctx context.Context, q sqllock.Querier, query string, dest ...sql.Scanner) error {
	var tx *sql.Tx
	switch q := q.(type) {
	case *sql.Conn:
		return session.Use(q, func(s *session.Session) error { return ask(ctx, s, query, dest...) })
	case *sql.Tx:
		tx = q
	}
	pointers := make([]any, len(dest))
	for i, d := range dest {
		pointers[i] = d
	}
	if tx != nil {
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	err := q.QueryRowContext(ctx, query).Scan(pointers...)
	switch {
	case err == nil || tx == nil:
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("the transaction's session did not answer for %v", answerTime)
	}
	return classify(err)
}

// ask runs a statement that answers with one row at once. The end of ctx does
// not reach it; it has a bound of its own.
func ask(ctx context.Context, s *session.Session, query string, dest ...sql.Scanner) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
	defer cancel()
	return understood(ctx, s.Row(ctx, query, dest...))
}

// understood is classify for a statement whose bound was that of ctx.
func understood(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: the server did not answer for %v", sqllock.ErrSessionGone, answerTime)
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
