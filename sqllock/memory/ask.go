package memory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

// use calls f with the session under conn, while nothing else runs on it. f is called
// without the mutex.
func (s *Server) use(ctx context.Context, conn *sql.Conn, f func(*client) error) error {
	return session.Use(conn, func(raw *session.Session) error {
		c, err := s.ask(ctx, raw)
		if err != nil {
			return err
		}
		return f(c)
	})
}

// ask finds out who the session is, by a statement on it that ctx does not cut short.
func (s *Server) ask(ctx context.Context, raw *session.Session) (*client, error) {
	var name sql.NullString
	var id sql.NullInt64
	err := raw.Row(context.WithoutCancel(ctx), question, &name, &id)
	return s.identify(name.String, id.Int64, err)
}

// over is ask for every Querier.
func (s *Server) over(ctx context.Context, q sqllock.Querier) (c *client, err error) {
	switch q := q.(type) {
	case sqllock.InTx:
		return s.over(ctx, q.Conn)
	case *sql.Conn:
		err = s.use(ctx, q, func(own *client) error {
			c = own
			return nil
		})
		return c, err
	case *sql.Tx:
		ctx = context.WithoutCancel(ctx)
	}
	var name string
	var id int64
	err = q.QueryRowContext(ctx, question).Scan(&name, &id)
	return s.identify(name, id, err)
}

// identify finds the session that the answer to the question tells of.
func (s *Server) identify(name string, id int64, err error) (*client, error) {
	switch {
	case errors.Is(err, session.ErrUnusable):
		return nil, fmt.Errorf("%w: %w", sqllock.ErrSessionGone, err)
	case errors.Is(err, sqllock.ErrSessionGone) || errors.Is(err, sql.ErrTxDone):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("memory: asking the session who it is: %w", err)
	case name != s.name:
		return nil, fmt.Errorf("%w: the connection leads to another memory.Server than the backend", sqllock.ErrUnsupported)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.clients[id]; c != nil {
		return c, nil
	}
	return nil, errEnded
}

// lost is what err means to a lock that was asked about: with its session it is gone.
func lost(err error) error {
	if errors.Is(err, sqllock.ErrSessionGone) {
		return fmt.Errorf("%w: %w", sqllock.ErrLost, err)
	}
	return err
}

// ttlOf is how long a request is granted what it asks for; 0 is for good.
type ttlOf func(sqllock.Request) time.Duration

// acquire is Acquire, where a conn that is closed is a session that is gone. Events are
// told when the session is free again: the observer may want to use it.
func (s *Server) acquire(ctx context.Context, conn *sql.Conn, req sqllock.Request, ttl ttlOf) (g sqllock.Grant, err error) {
	var events []sqllock.Event
	err = s.use(ctx, conn, func(c *client) (err error) {
		var h *holding
		if h, events, err = s.take(ctx, c, req, ttl(req)); err == nil {
			g = h.grant()
		}
		return err
	})
	tell(req, events)
	return g, unclosed(err)
}

// acquireAll is AcquireAll, as acquire is Acquire.
func (s *Server) acquireAll(ctx context.Context, conn *sql.Conn, reqs []sqllock.Request, ttl ttlOf) ([]sqllock.Grant, error) {
	var holdings []*holding
	var events [][]sqllock.Event
	err := s.use(ctx, conn, func(c *client) (err error) {
		holdings, events, err = s.takeAll(c, reqs, ttl)
		return err
	})
	if err != nil {
		return nil, unclosed(err)
	}
	grants := make([]sqllock.Grant, len(reqs))
	for i, h := range holdings {
		grants[i] = h.grant()
		tell(reqs[i], events[i])
	}
	return grants, nil
}

func tell(req sqllock.Request, events []sqllock.Event) {
	for _, e := range events {
		req.Observe(e)
	}
}

func unclosed(err error) error {
	if errors.Is(err, sql.ErrConnDone) {
		return fmt.Errorf("%w: %w", sqllock.ErrSessionGone, err)
	}
	return err
}
