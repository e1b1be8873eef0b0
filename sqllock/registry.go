package sqllock

import (
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"sync"

	"github.com/sqllock/go-sqllock/internal/session"
)

// sessions is one for the process, because a session is one for every Locker
// that works on it.
var sessions = registry{live: make(map[handle]*Lock)} //nolint:gochecknoglobals // see above

// registry knows what the sessions of this process hold. An entry goes when its
// lock has ended; a handle that is dropped without that stays.
type registry struct {
	mu   sync.Mutex       // guards live
	live map[handle]*Lock // what is held, or nil while it is being acquired
}

// handle is what a session can hold once.
type handle struct {
	conn    *sql.Conn
	backend reflect.Type // two backends may have locks of one key
	key     string
}

// reserve keeps two goroutines from acquiring one key on one session at a time:
// each could be taken for the other by the server. It returns the lock that is
// believed to be held there; whether it is, the server says.
func (r *registry) reserve(h handle) (*Lock, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, there := r.live[h]
	if there && old == nil {
		return nil, fmt.Errorf("%w, or is about to: another goroutine is acquiring it on the same conn", ErrHeld)
	}
	r.live[h] = nil
	return old, nil
}

// settle ends a reservation: l is what h holds now, nil for nothing.
func (r *registry) settle(h handle, l *Lock) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l == nil || l.ended() {
		delete(r.live, h)
		return
	}
	r.live[h] = l
}

// forget removes l, and nothing newer.
func (r *registry) forget(l *Lock) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live[l.handle] == l {
		delete(r.live, l.handle)
	}
}

// errUnsettled is why a session was discarded.
var errUnsettled = errors.New("it was closed when another lock on it could not be settled")

// discard closes the session under conn, and with it every lock that it held.
func (r *registry) discard(conn *sql.Conn, why error) {
	_ = session.Close(conn) // one that is closed already is what is wanted
	r.end(conn, why)
}

// end ends every lock of the session under conn, which is closed, or about to be.
func (r *registry) end(conn *sql.Conn, why error) {
	r.mu.Lock()
	var lost []*Lock
	for h, l := range r.live {
		if h.conn == conn && l != nil {
			lost = append(lost, l)
			delete(r.live, h)
		}
	}
	r.mu.Unlock()
	if !errors.Is(why, ErrSessionGone) {
		why = fmt.Errorf("%w: %w", ErrSessionGone, why)
	}
	for _, l := range lost {
		l.end(fmt.Errorf("%w: %w", ErrLost, why))
	}
}
