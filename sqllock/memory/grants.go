package memory

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// What both backends do with a grant. They differ in the error by which a loss is
// told while the session lives.

func (s *Server) release(ctx context.Context, conn *sql.Conn, g sqllock.Grant, notHeld error) error {
	return lost(s.use(ctx, conn, func(*client) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		h := s.held(g)
		if h == nil {
			return notHeld
		}
		s.free(h)
		return nil
	}))
}

// left asks over q, which is to be the session of g, how long g has; it is 0 for a
// lock without a TTL.
func (s *Server) left(ctx context.Context, q sqllock.Querier, g sqllock.Grant, notHeld error) (time.Duration, error) {
	c, err := s.over(ctx, q)
	if err != nil {
		return 0, lost(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.held(g)
	switch {
	case h == nil || h.client != c || h.over():
		return 0, notHeld
	case h.lease():
		return time.Until(h.expires), nil
	}
	return 0, nil
}

func (s *Server) watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) ([]bool, error) {
	if _, err := s.over(ctx, q); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	held := make([]bool, len(grants))
	for i, g := range grants {
		h := s.held(g)
		held[i] = h != nil && !h.over()
	}
	return held, nil
}

// pass ends a grant and begins another one, with nobody in between.
func (s *Server) pass(ctx context.Context, conn *sql.Conn, g sqllock.Grant, ttl time.Duration, notHeld error) (next sqllock.Grant, err error) {
	err = s.use(ctx, conn, func(*client) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		h := s.held(g)
		if h == nil || h.over() {
			return notHeld
		}
		l := s.locks[h.key]
		delete(h.client.held, h)
		h, _ = s.grant(l, h.client, ttl)
		s.settle(l)
		next = h.grant()
		return nil
	})
	return next, lost(err)
}

// holder tells who holds key; dead, what a session has left behind of a lease, too.
func (s *Server) holder(ctx context.Context, q sqllock.Querier, key string, dead bool) (sqllock.Holder, error) {
	if _, err := s.over(ctx, q); err != nil {
		return sqllock.Holder{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.describe(key, dead)
}

// describe is holder with the mutex held.
func (s *Server) describe(key string, dead bool) (sqllock.Holder, error) {
	l := s.locks[key]
	switch {
	case l != nil && l.holder != nil:
		return l.holder.describe(), nil
	case l != nil && dead:
		whom := l.left[len(l.left)-1].Holder
		whom.TimeLeft = time.Until(whom.Expires)
		return whom, nil
	}
	return sqllock.Holder{}, fmt.Errorf("%w: it is free", sqllock.ErrNotHeld)
}
