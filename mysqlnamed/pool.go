package mysqlnamed

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

var (
	_ sqllock.Watcher       = (*Backend)(nil)
	_ sqllock.Passer        = (*Backend)(nil)
	_ sqllock.GroupAcquirer = (*Backend)(nil)
)

// Watch asks for a hundred grants in one statement, over any session of the server. It
// goes by the sessions' ids; these begin anew when the server restarts, which Watch
// notices by the time at which it was started.
func (b *Backend) Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant) (held []bool, err error) {
	var server sql.NullString
	var serial sql.NullInt64
	start := time.Now()
	held, err = userlock.Watch(ctx, q, grants, watchQuery, &server, &serial)
	if err != nil {
		return nil, err
	}
	restarted := b.starts.saw(server.String, serial.Int64, start)
	for i, g := range grants {
		granted, _ := g.State.(time.Time)
		held[i] = held[i] && !granted.Before(restarted)
	}
	return held, nil
}

// starts are what is known of when servers were started. It is safe for concurrent
// use.
type starts struct {
	mu   sync.Mutex // guards last
	last map[string]sighting
}

// sighting is the latest of a server.
type sighting struct {
	serial    int64     // from UUID_SHORT
	at        time.Time // when it was asked for
	restarted time.Time // what was granted before this may have been granted before a restart; zero if there was none
}

// leap is how much the serial number of a server does not grow by in a minute: it
// begins with the second of the start, times twice as much, and grows by one with each
// call of UUID_SHORT by anybody.
const leap = 1 << 23

// saw notes the serial number that a server has given when it was asked at at, and
// tells before when a grant may be of an earlier life of it.
func (s *starts) saw(server string, serial int64, at time.Time) (restarted time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, seen := s.last[server]
	if seen && at.Before(last.at) {
		return last.restarted
	}
	if d := serial - last.serial; seen && (d > leap || d < -leap) {
		last.restarted = at
		if at.Sub(last.at) > time.Minute { // it may be a leap of many calls after all
			last.restarted = last.at
		}
	}
	if s.last == nil {
		s.last = make(map[string]sighting)
	}
	last.serial, last.at = serial, at
	s.last[server] = last
	return last.restarted
}

// Pass returns g, which has neither a token nor a TTL, without a round trip: the driver
// is asked whether the server has closed the connection.
func (b *Backend) Pass(ctx context.Context, conn *sql.Conn, g sqllock.Grant, _ sqllock.Request) (sqllock.Grant, error) {
	err := session.Use(conn, func(s *session.Session) error { return s.Alive(ctx) })
	if err != nil {
		return sqllock.Grant{}, fmt.Errorf("%w: %w: %w", sqllock.ErrLost, sqllock.ErrSessionGone, err)
	}
	return g, nil
}

// together is how many locks one statement takes. It could take a hundred before
// MariaDB has no stack left (1436), but its time grows with the square of that.
const together = 16

// AcquireAll takes all locks or none, sixteen in one round trip. See the package's
// documentation.
func (b *Backend) AcquireAll(ctx context.Context, conn *sql.Conn, reqs []sqllock.Request) ([]sqllock.Grant, error) {
	grants := make([]sqllock.Grant, 0, len(reqs))
	err := userlock.Use(conn, func(s *session.Session) error {
		for some := range slices.Chunk(reqs, together) {
			a := attempt{b: b, keys: keys(some)}
			err := a.try(ctx, s)
			if err == nil && a.verdict != userlock.Granted {
				err = sqllock.ErrBusy
			}
			if err != nil {
				return letGo(ctx, s, grants, err)
			}
			for _, key := range a.keys {
				grants = append(grants, a.grant(key))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return grants, nil
}

func keys(reqs []sqllock.Request) []string {
	all := make([]string, len(reqs))
	for i, req := range reqs {
		all[i] = req.Key
	}
	return all
}

// letGo frees what the statements before the one that failed have taken.
func letGo(ctx context.Context, s *session.Session, grants []sqllock.Grant, err error) error {
	if errors.Is(err, sqllock.ErrSessionGone) {
		return err
	}
	locks := make([]string, len(grants))
	for i, g := range grants {
		locks[i] = userlock.Literal(g.Key)
	}
	return userlock.LetGoAll(ctx, s, locks, err)
}
