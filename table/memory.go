package table

import (
	"sync"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// leavings are the rows that stayed behind when their locks were released where no
// row can be removed. Each is removed before its session rings again: with its
// doorbell held by the session that it names, it would look like a hung holder's.
type leavings struct {
	mu   sync.Mutex               // guards rows
	rows map[string]sqllock.Grant // by key
}

func (l *leavings) put(g sqllock.Grant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rows == nil {
		l.rows = make(map[string]sqllock.Grant)
	}
	l.rows[g.Key] = g
}

func (l *leavings) get(key string) (sqllock.Grant, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.rows[key]
	return g, ok
}

func (l *leavings) drop(g sqllock.Grant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rows[g.Key].Token == g.Token {
		delete(l.rows, g.Key)
	}
}

// doomed are the rows whose sessions were seen to hang: a wait for them may be made
// of several attempts, each of a short ctx.
type doomed struct {
	mu   sync.Mutex          // guards rows
	rows map[string]sighting // by key
}

// sighting is what identifies a row, and when it was first seen.
type sighting struct {
	session, created, token int64
	at                      time.Time
}

// since returns how long ago r was first seen to hang.
func (d *doomed) since(key string, r *row) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if seen, ok := d.rows[key]; ok && seen.session == r.session && seen.created == r.created && seen.token == r.token {
		return time.Since(seen.at)
	}
	if d.rows == nil {
		d.rows = make(map[string]sighting)
	}
	d.rows[key] = sighting{r.session, r.created, r.token, time.Now()}
	return 0
}

// forget is for when the lock has been granted.
func (d *doomed) forget(key string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.rows, key)
}

// crowd remembers which name was found taken last: while many want it, a try
// before each wait is in vain, and costs a third of the grants.
type crowd struct {
	mu   sync.Mutex // guards the following
	key  string
	left int // how many more need not try
}

// crowded is how many go without a try before one finds out whether there is
// still a crowd.
const crowded = 16

func (c *crowd) met(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.key, c.left = key, crowded
}

func (c *crowd) expects(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == 0 || c.key != key {
		return false
	}
	c.left--
	return true
}
