package lockhttp

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

// report is what is shown, as JSON and on the page. The names of fields are documented.
type report struct {
	Time    time.Time `json:"time"`
	Process string    `json:"process"`
	Pools   []pool    `json:"pools"`
	Holder  *holder   `json:"holder,omitempty"`
}

type pool struct {
	Name        string    `json:"name"`
	Connections int       `json:"connections"`
	Held        []held    `json:"held"`
	Waiting     []waiting `json:"waiting"`
	Counts      []counts  `json:"counts"`
}

type held struct {
	Name     string    `json:"name"`
	By       string    `json:"by"`
	Since    time.Time `json:"since"`
	Held     float64   `json:"held_seconds"`
	Session  int64     `json:"session"`
	Sharing  int       `json:"sharing"`
	Token    int64     `json:"token"`
	TimeLeft *float64  `json:"ttl_left_seconds"`
	Released bool      `json:"released"`
	Lost     bool      `json:"lost"`
}

type waiting struct {
	Name    string    `json:"name"`
	By      string    `json:"by"`
	Since   time.Time `json:"since"`
	Waiting float64   `json:"waiting_seconds"`
	Holder  string    `json:"holder"`
	Problem string    `json:"problem"`
}

type counts struct {
	Name     string  `json:"name"`
	Acquired int64   `json:"acquired"`
	HandedOn int64   `json:"handed_on"`
	Busy     int64   `json:"busy"`
	Released int64   `json:"released"`
	Lost     int64   `json:"lost"`
	Expired  int64   `json:"expired"`
	Extended int64   `json:"extended"`
	Starved  int64   `json:"starved"`
	Taken    int64   `json:"taken_over"`
	Killed   int64   `json:"killed"`
	Waited   float64 `json:"waited_seconds"`
	Held     float64 `json:"held_seconds"`
}

type holder struct {
	Pool     string    `json:"pool"`
	Name     string    `json:"name"`
	Held     bool      `json:"held"`
	Error    string    `json:"error"`
	Key      string    `json:"key"`
	Session  int64     `json:"session"`
	Process  string    `json:"process"`
	User     string    `json:"user"`
	Host     string    `json:"host"`
	Database string    `json:"database"`
	State    string    `json:"state"`
	Token    int64     `json:"token"`
	Alive    bool      `json:"alive"`
	Since    time.Time `json:"since,omitzero"`
	TimeLeft *float64  `json:"ttl_left_seconds"`
}

func (h *handler) report(ctx context.Context, q query) report {
	r := report{Process: session.Process()}
	if q.holder != "" {
		r.Holder = h.holder(ctx, q)
	}
	r.Time = time.Now().UTC() // of the snapshots, not of the question
	for _, name := range h.names {
		r.Pools = append(r.Pools, poolOf(name, h.pools[name]))
	}
	return r
}

func poolOf(name string, p *sqllock.Pool) pool {
	snap, stats := p.Snapshot(), p.Stats()
	r := pool{Name: name, Connections: stats.Conns, Held: []held{}, Waiting: []waiting{}, Counts: []counts{}}
	for _, l := range snap.Held {
		r.Held = append(r.Held, held{
			Name: l.Name, By: l.By, Since: l.Since.UTC(), Held: l.For.Seconds(), Session: l.Session, Sharing: l.Sharing,
			Token: l.Token, TimeLeft: left(l.TimeLeft, l.TimeLeft != 0), Released: l.Released, Lost: l.Lost,
		})
	}
	for _, c := range snap.Waiting {
		r.Waiting = append(r.Waiting, waiting{c.Name, c.By, c.Since.UTC(), c.For.Seconds(), c.Holder, c.Problem})
	}
	for name, s := range stats.Names {
		r.Counts = append(r.Counts, counts{
			name, s.Acquired, s.HandedOn, s.Busy, s.Released, s.Lost, s.Expired, s.Extended, s.Starved, s.Taken, s.Killed,
			s.Waited.Seconds(), s.Held.Seconds(),
		})
	}
	slices.SortFunc(r.Counts, func(a, b counts) int {
		return cmp.Or(cmp.Compare(b.Waited, a.Waited), cmp.Compare(a.Name, b.Name))
	})
	return r
}

func (h *handler) holder(ctx context.Context, q query) *holder {
	is, err := h.ask(ctx, q)
	r := &holder{Pool: q.pool, Name: q.holder}
	switch {
	case errors.Is(err, sqllock.ErrNotHeld):
		return r
	case err != nil:
		r.Error = err.Error()
		return r
	}
	r.Held, r.Key, r.Session, r.Process, r.User, r.Host = true, is.Key, is.Session, is.Process, is.User, is.Host
	r.Database, r.State, r.Token, r.Alive, r.Since = is.Database, is.State, is.Token, is.Alive, is.Since.UTC()
	r.TimeLeft = left(is.TimeLeft, !is.Expires.IsZero())
	return r
}

// left is nil for a lock without a TTL.
func left(d time.Duration, leased bool) *float64 {
	if !leased {
		return nil
	}
	s := d.Seconds()
	return &s
}
