package lockhttp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqllock/go-sqllock/adapter/lockhttp"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
)

// get returns what h answers, and its body.
func get(tb testing.TB, h http.Handler, target string, header ...string) (res *http.Response, body string) {
	tb.Helper()
	r := httptest.NewRequestWithContext(tb.Context(), http.MethodGet, target, http.NoBody)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return serve(tb, h, r)
}

func serve(tb testing.TB, h http.Handler, r *http.Request) (res *http.Response, body string) {
	tb.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	res = w.Result()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return res, string(text)
}

func contains(tb testing.TB, body string, texts ...string) {
	tb.Helper()
	for _, text := range texts {
		if !strings.Contains(body, text) {
			tb.Errorf("there is no %s in\n%s", text, body)
		}
	}
}

// host is a process with a Pool.
type host struct {
	*sqllock.Pool

	t *testing.T
}

func newHost(t *testing.T, s *memory.Server, b sqllock.Backend) host {
	t.Helper()
	db := s.DB()
	p := sqllock.NewPool(db, sqllock.New(b, sqllock.WithNamespace("billing")), sqllock.WithMaxConns(2))
	t.Cleanup(func() {
		if err := p.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		_ = db.Close()
	})
	return host{p, t}
}

func (h host) lock(name string, opts ...sqllock.LockOption) *sqllock.Lock {
	h.t.Helper()
	l, err := h.Lock(h.t.Context(), name, opts...)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = l.Release(context.WithoutCancel(h.t.Context())) })
	return l
}

// wait has a call wait for name until the test ends.
func (h host) wait(name string, opts ...sqllock.LockOption) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if l, err := h.Lock(ctx, name, opts...); err == nil {
			_ = l.Release(ctx)
		}
	})
	h.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	synctest.Wait()
}

// TestJSON: every field, by the name that the documentation has for it.
func TestJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		h, other := newHost(t, server, server.Leases(time.Minute)), newHost(t, server, server.Backend())
		handler := lockhttp.Handler(map[string]*sqllock.Pool{"shop": h.Pool, "archive": other.Pool})
		other.lock("theirs")
		h.lock("job")
		time.Sleep(1500 * time.Millisecond)
		own := h.lock("own", sqllock.OwnSession())
		if err := server.Lose("billing:own"); err != nil {
			t.Fatal(err)
		}
		<-own.Done()
		if err := h.lock("on", sqllock.AtLeast(30*time.Second)).Release(t.Context()); err != nil {
			t.Error(err)
		}
		h.wait("theirs")
		time.Sleep(100 * time.Millisecond)
		h.wait("job")
		time.Sleep(100 * time.Millisecond)
		h.wait("more", sqllock.OwnSession())
		time.Sleep(300 * time.Millisecond)

		res, body := get(t, handler, "/?format=json&holder=theirs&pool=shop")
		if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s, %v", res.Status, res.Header)
		}
		lines := regexp.MustCompile(`"github\.com/sqllock/go-sqllock/adapter/lockhttp_test\.[^:"]*:\d+"`)
		body = lines.ReplaceAllStringFunc(body, func(by string) string {
			return strings.ReplaceAll(by[:strings.LastIndex(by, ":")]+`"`, "github.com/sqllock/go-sqllock/adapter/lockhttp_test.", "")
		})
		body = regexp.MustCompile(`"process":"[^ "]*/\d+ lockhttp.test"`).ReplaceAllString(body, `"process":"us"`)
		body = regexp.MustCompile(`of the 2 that the Pool may take[^}]*WithMaxConns`).ReplaceAllString(body, "too few")
		var pretty strings.Builder
		var v any
		if err := json.Unmarshal([]byte(body), &v); err != nil {
			t.Fatal(err, body)
		}
		e := json.NewEncoder(&pretty)
		e.SetIndent("", " ")
		if err := e.Encode(v); err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile("testdata/report.json")
		if err != nil {
			t.Fatal(err)
		}
		if pretty.String() != string(want) {
			t.Errorf("got\n%s\nwant\n%s", pretty.String(), want)
		}
	})
}

// TestPage: what the page shows, and what it is protected by.
func TestPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		h, other := newHost(t, server, server.Leases(time.Hour)), newHost(t, server, server.Backend())
		handler := lockhttp.Handler(map[string]*sqllock.Pool{"shop": h.Pool})
		_, body := get(t, handler, "/")
		contains(t, body, "0 held, 0 waiting, 0 connections", "Nothing is held.", "Nobody waits.")

		const hostile = `<img src=x onerror=alert(1)>"'&{{.}}`
		other.lock(hostile)
		h.lock("invoices")
		h.wait(hostile)
		h.wait("invoices")
		time.Sleep(90 * time.Second)
		res, body := get(t, handler, "/debug/locks")
		escaped := `&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;{{.}}`
		contains(t, body, "<!DOCTYPE html>", "1 held, 2 waiting, 2 connections",
			`<td class="name" data-label="Lock">`+escaped+`</td>`,
			`data-label="For" title="since 2000-01-01 00:00:00 UTC">1m30s</td>`,
			"lockhttp_test.host.wait.func1:", "lockhttp_test.host.lock:")
		// The link leads to the same name.
		link := regexp.MustCompile(`another process: <a href="([^"]*)">who\?</a>`).FindStringSubmatch(body)
		if link == nil {
			t.Fatal(body)
		}
		if u, err := url.Parse(html.UnescapeString(link[1])); err != nil || u.Query().Get("holder") != hostile || u.Query().Get("pool") != "shop" {
			t.Errorf("%q: %v", link[1], err)
		}
		if strings.Contains(body, "<img") || strings.Contains(body, "http://") || strings.Contains(body, "https://") || strings.Contains(body, "<script") {
			t.Errorf("there is what must not be there:\n%s", body)
		}
		for name, want := range map[string]string{
			"Content-Type":           "text/html; charset=utf-8",
			"Cache-Control":          "no-store",
			"X-Content-Type-Options": "nosniff",
			"Referrer-Policy":        "no-referrer",
			"Vary":                   "Accept",
		} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		nonce := regexp.MustCompile(`<style nonce="([A-Z2-7]{26})">`).FindStringSubmatch(body)
		if nonce == nil {
			t.Fatal("the style has no nonce")
		}
		want := "default-src 'none'; style-src 'nonce-" + nonce[1] + "'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
		if got := res.Header.Get("Content-Security-Policy"); got != want {
			t.Errorf("Content-Security-Policy: %s", got)
		}
		if _, again := get(t, handler, "/"); strings.Contains(again, nonce[1]) {
			t.Error("the nonce is used again")
		}
		if strings.Contains(body, "http-equiv") {
			t.Error("the page loads again without being asked to")
		}
		_, body = get(t, handler, "/?refresh=5")
		contains(t, body, `<meta http-equiv="refresh" content="5">`, "loads again every 5 s")

		// The name comes back in the answer and in the form.
		_, body = get(t, handler, "/?holder="+url.QueryEscape(hostile))
		contains(t, body, "Who holds <span class=\"name\">"+escaped, `value="`+escaped+`"`, "<dt>session</dt><dd>1</dd>")
		if strings.Contains(body, "<img") {
			t.Errorf("the name is not escaped:\n%s", body)
		}
	})
}

// TestStates: what is not as it should be is said.
func TestStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		h := newHost(t, server, server.Backend())
		handler := lockhttp.Handler(map[string]*sqllock.Pool{"shop": h.Pool})
		lost := h.lock("lost", sqllock.OwnSession())
		h.lock("plain")
		if err := h.lock("on", sqllock.AtLeast(time.Minute)).Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := server.Lose("billing:lost"); err != nil {
			t.Fatal(err)
		}
		<-lost.Done()
		h.wait("more", sqllock.OwnSession())
		_, body := get(t, handler, "/")
		contains(t, body, "lost; its holder has not noticed", "released, held on for AtLeast", `<td class="state" data-label="State">held</td>`,
			`<span class="bad">sqllock: too few connections`, `<td class="n bad" data-label="Lost">1</td>`)
	})
}

// TestCounts: what was waited for longest comes first, then it is by name.
func TestCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		h := newHost(t, server, server.Backend())
		for _, name := range []string{"b", "a"} {
			h.lock(name)
		}
		job := h.lock("job")
		h.wait("job")
		time.Sleep(time.Second)
		if err := job.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		var report struct {
			Pools []struct {
				Counts []struct {
					Name   string
					Waited float64 `json:"waited_seconds"`
					Held   float64 `json:"held_seconds"`
				}
			}
		}
		_, body := get(t, lockhttp.Handler(map[string]*sqllock.Pool{"shop": h.Pool}), "/?format=json")
		if err := json.Unmarshal([]byte(body), &report); err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprint(report.Pools[0].Counts), "[{job 1 1} {a 0 0} {b 0 0}]"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
}

// TestRequests: who asks for what there is not is told what there is.
func TestRequests(t *testing.T) {
	server := memory.New()
	db := server.DB()
	t.Cleanup(func() { _ = db.Close() })
	pool := sqllock.NewPool(db, sqllock.New(server.Backend()))
	one := lockhttp.Handler(map[string]*sqllock.Pool{"shop": pool})
	two := lockhttp.Handler(map[string]*sqllock.Pool{"shop": pool, "<archive>": pool})
	for _, test := range []struct {
		h      http.Handler
		target string
		want   string
	}{
		{one, "/?format=xml", `lockhttp: format="xml": there are json and html`},
		{one, "/?refresh=0", `lockhttp: refresh="0": give it a number of seconds from 1 to 3600`},
		{one, "/?refresh=3601", `lockhttp: refresh="3601": give it a number of seconds from 1 to 3600`},
		{one, "/?refresh=%3Cb%3E", `lockhttp: refresh="<b>": give it a number of seconds from 1 to 3600`},
		{one, "/?holder=job&refresh=5", "lockhttp: holder asks the server, which is not done again and again: leave out refresh"},
		{one, "/?holder=job&pool=x", `lockhttp: holder needs the name of a Pool, of the same server: pool="x" is not among ["shop"]`},
		{two, "/?holder=job", `lockhttp: holder needs the name of a Pool, of the same server: pool="" is not among ["<archive>" "shop"]`},
	} {
		res, body := get(t, test.h, test.target)
		if res.StatusCode != http.StatusBadRequest || body != test.want+"\n" || res.Header.Get("Content-Type") != "text/plain; charset=utf-8" || res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s, %v\n%s", test.target, res.Status, res.Header, body)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
		res, body := serve(t, one, httptest.NewRequestWithContext(t.Context(), method, "/", http.NoBody))
		if res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") != "GET, HEAD" || body != "lockhttp: this page is only read: use GET\n" {
			t.Errorf("%s: %s, %v\n%s", method, res.Status, res.Header, body)
		}
	}
	if res, _ := serve(t, one, httptest.NewRequestWithContext(t.Context(), http.MethodHead, "/", http.NoBody)); res.StatusCode != http.StatusOK {
		t.Errorf("HEAD: %s", res.Status)
	}
	for _, test := range []struct {
		target, accept string
		json           bool
	}{
		{"/", "", false},
		{"/", "*/*", false},
		{"/", "application/json", true},
		{"/", "application/json, text/plain, */*", true},
		{"/", "text/html,application/xhtml+xml,application/json;q=0.9", false},
		{"/?format=html", "application/json", false},
		{"/?format=json", "text/html", true},
	} {
		res, body := get(t, two, test.target, "Accept", test.accept)
		if res.StatusCode != http.StatusOK || json.Valid([]byte(body)) != test.json {
			t.Errorf("%s with %q: %s\n%s", test.target, test.accept, res.Status, body)
		}
	}
}

var errNetwork = errors.New("network unreachable")

// TestHolder: the server is asked when somebody wants that, by one at a time, and not for
// long.
func TestHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory.New()
		db := server.DB()
		other := newHost(t, server, server.Leases(time.Minute))
		pool := sqllock.NewPool(db, sqllock.New(server.Leases(time.Minute), sqllock.WithNamespace("billing")))
		handler := lockhttp.Handler(map[string]*sqllock.Pool{"shop": pool})
		held := other.lock("theirs")
		holder := func() (is struct {
			Held, Alive    bool
			Error, Key     string
			Session, Token int64
			Left           float64 `json:"ttl_left_seconds"`
		},
		) {
			t.Helper()
			_, body := get(t, handler, "/?format=json&holder=theirs")
			all := struct{ Holder any }{&is}
			if err := json.Unmarshal([]byte(body), &all); err != nil {
				t.Error(err, body)
			}
			return is
		}
		if is := holder(); !is.Held || !is.Alive || is.Key != "billing:theirs" || is.Session != held.Grant().Session || is.Token != 1 || is.Left != 60 {
			t.Errorf("%+v", is)
		}
		_, body := get(t, handler, "/?holder=theirs")
		contains(t, body, "<dt>TTL left</dt><dd>1m0s</dd>", "<dt>token</dt><dd>1</dd>", `<dd class="name">billing:theirs</dd>`)

		server.Fail(errNetwork)
		for range 3 {
			if res, _ := get(t, handler, "/"); res.StatusCode != http.StatusOK {
				t.Errorf("the page needs the server: %s", res.Status)
			}
		}
		if is := holder(); is.Held || !strings.Contains(is.Error, "network unreachable") {
			t.Errorf("%+v", is)
		}
		_, body = get(t, handler, "/?holder=theirs")
		contains(t, body, `<p class="bad">sqllock: `, "network unreachable")
		server.Fail(nil)

		// The application uses all of its connections.
		db.SetMaxOpenConns(1)
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		var wg sync.WaitGroup
		var mu sync.Mutex
		var errs []string
		for range 5 {
			wg.Go(func() {
				is := holder()
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, is.Error)
			})
		}
		synctest.Wait()
		if n := db.Stats().WaitCount; n != 1 {
			t.Errorf("%d requests wait for a connection", n)
		}
		if res, _ := get(t, handler, "/"); res.StatusCode != http.StatusOK || time.Since(start) != 0 {
			t.Error("the page waits for those who ask")
		}
		wg.Wait()
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("it took %v", d)
		}
		// All give up at one moment, when the turn may still go to another one.
		all := strings.Join(errs, "\n")
		asked, waited := strings.Count(all, "no answer within 2s, or no connection was free to ask over"), strings.Count(all, "others are asking, and wait for the answer")
		if asked < 1 || asked+waited != 5 {
			t.Error(all)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}

		if err := server.Kill(held.Grant().Session); err != nil {
			t.Fatal(err)
		}
		if is := holder(); !is.Held || is.Alive {
			t.Errorf("of a dead session: %+v", is)
		}
		_, body = get(t, handler, "/?holder=theirs")
		contains(t, body, "A session that is dead, or let go, has left it behind.")
		_, body = get(t, handler, "/?holder=nobody")
		contains(t, body, "Nobody: the server says that it is free.")
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestMany: a page of a thousand rows can be looked at; the JSON has all.
func TestMany(t *testing.T) {
	const locks = 1234
	server := memory.New()
	db := server.DB()
	pool := sqllock.NewPool(db, sqllock.New(server.Backend()))
	handler := lockhttp.Handler(map[string]*sqllock.Pool{"shop": pool})
	names := make([]string, locks)
	for i := range names {
		names[i] = fmt.Sprint("account:", i)
	}
	all, err := pool.LockAll(t.Context(), names)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() { _, _ = pool.Lock(ctx, name) })
	}
	for pool.Stats().Waits < locks {
		time.Sleep(time.Millisecond)
	}
	_, body := get(t, handler, "/")
	if n := strings.Count(body, "<tr>"); n != 3*1001 {
		t.Errorf("%d rows", n)
	}
	contains(t, body, `<p class="soft">and 234 more, in the JSON</p>`, "1234 held, 1234 waiting", html.EscapeString(sqllock.OtherNames))
	_, body = get(t, handler, "/?format=json")
	if n := strings.Count(body, `"held_seconds"`) + strings.Count(body, `"waiting_seconds"`); n != 2*locks+1001 {
		t.Errorf("%d of them in the JSON", n)
	}
	cancel()
	wg.Wait()
	if err := all.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if err := pool.Close(t.Context()); err != nil {
		t.Error(err)
	}
	_ = db.Close()
}

// TestBusy: the page is looked at while locks come and go, and the caller's map changes.
func TestBusy(t *testing.T) {
	server := memory.New()
	db := server.DB()
	pool := sqllock.NewPool(db, sqllock.New(server.Leases(time.Minute)))
	pools := map[string]*sqllock.Pool{"shop": pool}
	handler := lockhttp.Handler(pools)
	clear(pools)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := pool.Do(t.Context(), "job", func(context.Context, *sqllock.Lock) error { return nil }); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 100 {
		if res, body := get(t, handler, "/"); res.StatusCode != http.StatusOK || !strings.HasSuffix(body, "</html>\n") {
			t.Errorf("%s\n%s", res.Status, body)
		}
		get(t, handler, "/?format=json&holder=job")
	}
	close(stop)
	wg.Wait()
	if err := pool.Close(t.Context()); err != nil {
		t.Error(err)
	}
	_ = db.Close()
}

func TestPanics(t *testing.T) {
	for want, pools := range map[string]map[string]*sqllock.Pool{
		"lockhttp: Handler needs a Pool, and a name for it": nil,
		`lockhttp: the Pool "shop" is nil`:                  {"shop": nil},
	} {
		func() {
			defer func() {
				if got := recover(); got != want {
					t.Errorf("%v, want %s", got, want)
				}
			}()
			lockhttp.Handler(pools)
		}()
	}
}
