package memory

import (
	"crypto/rand"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// Server stands for one database server: it knows the sessions that are connected
// to it, and which of them holds or waits for which lock. It is safe for concurrent
// use, and needs no closing: it has no goroutine, and a timer only while somebody
// waits for a lease.
type Server struct {
	name string // tells servers apart

	mu       sync.Mutex        // guards the following, and all that hangs on it
	pools    int64             // how many DB has made
	sessions int64             // the id of the latest session
	tokens   int64             // the latest fencing token
	failure  error             // what statements fail with, or nil
	clients  map[int64]*client // the sessions that live, by id
	locks    map[string]*lock  // those that somebody holds, or has left behind, by key
}

// New returns a server that nobody is connected to.
func New() *Server {
	return &Server{name: rand.Text(), clients: make(map[int64]*client), locks: make(map[string]*lock)}
}

// DB returns a new pool of connections to the server, each of which is a session
// there. Two pools of one server stand for two processes, and differ in the Process
// of a [sqllock.Holder]. The caller closes it, and may tune it.
//
// It is no database: it connects, answers Ping, begins, commits and rolls back, all
// to no effect, and answers a SELECT of whole numbers, as checks of health send it.
// Any other statement is an error, which leaves the session as it is.
func (s *Server) DB() *sql.DB {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pools++
	process := fmt.Sprintf("memory/%d %s", s.pools, filepath.Base(os.Args[0]))
	return sql.OpenDB(&connector{s, process}) //nolint:forbidigo // made for the caller, who closes it
}

// Backend returns a backend on the locks of the server that has no TTLs and no
// tokens, as package mysqlnamed. All of them are the same.
func (s *Server) Backend() *Backend { return &Backend{s} }

// Leases returns a backend on the locks of the server whose locks are held for ttl,
// unless [sqllock.TTL] says otherwise, and have tokens, as package table. TTLs are
// rounded up to whole seconds. One name is one lock, whichever backend it was
// acquired by. It panics if ttl is not positive.
func (s *Server) Leases(ttl time.Duration) *Leases {
	if ttl <= 0 {
		panic(fmt.Sprintf("memory: Leases(%v): the TTL must be positive", ttl))
	}
	return &Leases{s, ttl}
}

// Lose has the holder of a lock lose it, by ending its session: whatever else that
// session holds is lost, too, and who waits is granted the lock. The handle finds out
// as it does on a real server, when the server is asked the next time: by the watch
// of a Do or a [sqllock.Pool] at the interval of [sqllock.WithCheckInterval], by Check,
// or by Release.
//
// key is the name on the server, as [sqllock.Key] makes it: "billing:invoices" is
// that of the lock "invoices" of a Locker with the namespace "billing". It returns an
// error that matches [sqllock.ErrNotHeld] if nobody holds the lock.
func (s *Server) Lose(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.locks[key]
	if l == nil || l.holder == nil {
		return fmt.Errorf("memory: lose %q: %w", key, sqllock.ErrNotHeld)
	}
	s.end(l.holder.client)
	return nil
}

// Kill ends a session, as the operator of a server does: Lose for all its locks,
// and the end of its wait, with [sqllock.ErrSessionGone], if it waits for one. The id
// is that of a [sqllock.Grant] or a [sqllock.Holder]. It returns an error if there is
// no such session.
func (s *Server) Kill(session int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[session]
	if c == nil {
		return fmt.Errorf("memory: kill: there is no session %d", session)
	}
	s.end(c)
	return nil
}

// Fail has every statement fail with an error that wraps err, until Fail(nil): the
// server can't be reached, and locks and sessions stay as they are. A Check then
// returns [sqllock.ErrUnknown], and the lock goes on; a Release closes its session,
// as it does on a real server when it is not confirmed. Connecting fails, too; a
// wait that has begun goes on.
func (s *Server) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = nil
	if err != nil {
		s.failure = fmt.Errorf("memory: the server fails: %w", err)
	}
}

// Waiters tells how many sessions wait for the lock; key is as in Lose. A test that
// wants somebody to wait before it goes on asks until it is so.
func (s *Server) Waiters(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.locks[key]; l != nil {
		return len(l.queue)
	}
	return 0
}
