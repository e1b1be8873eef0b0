package lockhttp

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// askTime is how long the server may take to tell who holds a lock, the wait for a
// connection included.
const askTime = 2 * time.Second

// maxRefresh is the longest interval between two loads of the page, in seconds.
const maxRefresh = 3600

// handler is what Handler returns.
type handler struct {
	pools map[string]*sqllock.Pool
	names []string      // of the pools, sorted
	turn  chan struct{} // to ask the server
}

// Handler returns a handler that shows pools, under their names. It answers GET and HEAD
// on whatever path it is mounted. It panics if there is no Pool, or one that is nil.
func Handler(pools map[string]*sqllock.Pool) http.Handler {
	if len(pools) == 0 {
		panic("lockhttp: Handler needs a Pool, and a name for it")
	}
	for name, pool := range pools {
		if pool == nil {
			panic(fmt.Sprintf("lockhttp: the Pool %q is nil", name))
		}
	}
	return &handler{maps.Clone(pools), slices.Sorted(maps.Keys(pools)), make(chan struct{}, 1)}
}

// query is what is asked for.
type query struct {
	json    bool
	refresh int    // seconds; 0 for never
	pool    string // of holder
	holder  string // the name of a lock
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Vary", "Accept")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "lockhttp: this page is only read: use GET", http.StatusMethodNotAllowed)
		return
	}
	q, err := h.query(r)
	if err != nil {
		http.Error(w, "lockhttp: "+err.Error(), http.StatusBadRequest)
		return
	}
	rep := h.report(r.Context(), q)
	var body bytes.Buffer
	if q.json {
		header.Set("Content-Type", "application/json")
		err = json.NewEncoder(&body).Encode(rep)
	} else {
		nonce := rand.Text()
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Content-Security-Policy", "default-src 'none'; style-src 'nonce-"+nonce+"'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		err = write(&body, rep, q, nonce)
	}
	if err != nil {
		http.Error(w, "lockhttp: the page could not be made: "+err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = body.WriteTo(w) // who has left needs no answer
}

func (h *handler) query(r *http.Request) (q query, err error) {
	values := r.URL.Query()
	accept := strings.Join(r.Header.Values("Accept"), ",")
	switch format := values.Get("format"); format {
	case "":
		q.json = strings.Contains(accept, "application/json") && !strings.Contains(accept, "text/html")
	case "json":
		q.json = true
	case "html":
	default:
		return q, fmt.Errorf("format=%q: there are json and html", format)
	}
	if s := values.Get("refresh"); s != "" {
		if q.refresh, err = strconv.Atoi(s); err != nil || q.refresh < 1 || q.refresh > maxRefresh {
			return q, fmt.Errorf("refresh=%q: give it a number of seconds from 1 to %d", s, maxRefresh)
		}
	}
	q.pool, q.holder = values.Get("pool"), values.Get("holder")
	if q.pool == "" && len(h.names) == 1 {
		q.pool = h.names[0]
	}
	switch {
	case q.holder == "":
	case q.refresh != 0:
		return q, errors.New("holder asks the server, which is not done again and again: leave out refresh")
	case h.pools[q.pool] == nil:
		return q, fmt.Errorf("holder needs the name of a Pool, of the same server: pool=%q is not among %q", q.pool, h.names)
	}
	return q, nil
}

// ask asks the server who holds a lock.
func (h *handler) ask(ctx context.Context, q query) (sqllock.Holder, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return sqllock.Holder{}, fmt.Errorf("others are asking, and wait for the answer: %w", ctx.Err())
	}
	holder, err := h.pools[q.pool].Holder(ctx, q.holder)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v, or no connection was free to ask over: %w", askTime, err)
	}
	return holder, err
}
