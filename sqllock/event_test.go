package sqllock_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
)

// told fails the test unless the observer of h was told exactly want, in that order.
// Err is what the error is to match, Holder is compared by its session, and a Name
// that is empty is any.
func (h *host) told(t *testing.T, want ...sqllock.Event) {
	t.Helper()
	synctest.Wait()
	h.mu.Lock()
	got := h.events
	h.events = nil
	h.mu.Unlock()
	if len(got) != len(want) {
		t.Errorf("got %d events, want %d:\n%+v", len(got), len(want), got)
		return
	}
	for i, g := range got {
		w := want[i]
		same := g.Kind == w.Kind && (g.Name == w.Name || w.Name == "") && g.Waited == w.Waited && g.Held == w.Held && g.Token == w.Token &&
			g.Holder.Session == w.Holder.Session && errors.Is(g.Err, w.Err)
		if !same {
			t.Errorf("event %d:\ngot  %+v\nwant %+v", i, g, w)
		}
	}
}

// TestPoolEvents: what an observer is told, with every field.
func TestPoolEvents(t *testing.T) {
	const s1, s3, s5, s10 = time.Second, 3 * time.Second, 5 * time.Second, 10 * time.Second
	acquired := sqllock.Event{Kind: sqllock.Acquired, Name: "job"}
	leased := sqllock.Event{Kind: sqllock.Acquired, Name: "job", Token: 1}
	extended := sqllock.Event{Kind: sqllock.Extended, Name: "job"}
	for _, test := range []struct {
		name string
		ttl  time.Duration
		f    func(t *testing.T, s *memory.Server, h, other *host)
		want []sqllock.Event
	}{
		{"released", 0, func(t *testing.T, _ *memory.Server, h, _ *host) {
			l := h.locks(t, "job")
			time.Sleep(s3)
			release(t, l)
			_ = l.Release(t.Context())
		}, []sqllock.Event{acquired, {Kind: sqllock.Released, Name: "job", Held: s3}}},

		{"handed on", s10, func(t *testing.T, _ *memory.Server, h, _ *host) {
			l := h.locks(t, "job")
			next := h.begin(t.Context(), "job")
			time.Sleep(5 * time.Millisecond)
			release(t, l)
			release(t, granted(t, next))
		}, []sqllock.Event{
			leased,
			{Kind: sqllock.Released, Name: "job", Held: 5 * time.Millisecond},
			{Kind: sqllock.Acquired, Name: "job", Token: 2, Waited: 5 * time.Millisecond},
			{Kind: sqllock.Released, Name: "job"},
		}},

		{"waited", 0, func(t *testing.T, _ *memory.Server, h, other *host) {
			l := other.locks(t, "job")
			next := h.begin(t.Context(), "job")
			time.Sleep(s3)
			release(t, l)
			release(t, granted(t, next))
		}, []sqllock.Event{{Kind: sqllock.Acquired, Name: "job", Waited: s3}, {Kind: sqllock.Released, Name: "job"}}},

		{"busy", 0, func(t *testing.T, _ *memory.Server, h, other *host) {
			for _, holder := range []*host{h, other} {
				l := holder.locks(t, "job")
				_, _ = h.TryLock(t.Context(), "job")
				_, _ = h.TryDo(t.Context(), "job", nothing)
				ctx, cancel := context.WithTimeout(t.Context(), s5)
				_, _ = h.Lock(ctx, "job")
				cancel()
				release(t, l)
			}
		}, []sqllock.Event{
			acquired,
			{Kind: sqllock.Busy, Name: "job", Err: sqllock.ErrBusy},
			{Kind: sqllock.Busy, Name: "job", Err: sqllock.ErrBusy},
			{Kind: sqllock.Busy, Name: "job", Waited: s5, Err: context.DeadlineExceeded},
			{Kind: sqllock.Released, Name: "job", Held: s5},
			{Kind: sqllock.Busy, Name: "job", Err: sqllock.ErrBusy},
			{Kind: sqllock.Busy, Name: "job", Err: sqllock.ErrBusy},
			{Kind: sqllock.Busy, Name: "job", Waited: s5, Err: context.DeadlineExceeded},
		}},

		{"not even tried", 0, func(t *testing.T, _ *memory.Server, h, _ *host) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, _ = h.Lock(ctx, "job")
			_, _ = h.Lock(t.Context(), "")
			_, _ = h.Lock(t.Context(), "job", sqllock.TTL(s1))
		}, nil},

		{"lost", 0, func(t *testing.T, s *memory.Server, h, _ *host) {
			l := h.locks(t, "job")
			time.Sleep(2500 * time.Millisecond)
			if err := s.Lose("job"); err != nil {
				t.Error(err)
			}
			<-l.Done()
			_ = l.Release(t.Context())
		}, []sqllock.Event{acquired, {Kind: sqllock.Lost, Name: "job", Held: s3, Err: sqllock.ErrLost}}},

		{"not confirmed", 0, func(t *testing.T, s *memory.Server, h, _ *host) {
			l := h.locks(t, "job")
			time.Sleep(s3)
			s.Fail(errNetwork)
			_ = l.Release(t.Context())
			s.Fail(nil)
		}, []sqllock.Event{acquired, {Kind: sqllock.Lost, Name: "job", Held: s3, Err: sqllock.ErrUnknown}}},

		{"expired", s10, func(t *testing.T, _ *memory.Server, h, _ *host) {
			l := h.locks(t, "job")
			<-l.Done()
			_ = l.Release(t.Context())
		}, []sqllock.Event{leased, {Kind: sqllock.Expired, Name: "job", Held: s10, Err: sqllock.ErrLost}}},

		{"kept alive", 9 * s1, func(t *testing.T, _ *memory.Server, h, _ *host) {
			l := h.locks(t, "job", sqllock.KeepAlive(time.Hour))
			time.Sleep(s10)
			release(t, l)
		}, []sqllock.Event{leased, extended, extended, extended, {Kind: sqllock.Released, Name: "job", Held: s10}}},

		{"extended", s10, func(t *testing.T, s *memory.Server, h, _ *host) {
			l := h.locks(t, "job")
			_ = l.Extend(t.Context(), s5)
			s.Fail(errNetwork)
			_ = l.Extend(t.Context(), s10)
			s.Fail(nil)
			release(t, l)
		}, []sqllock.Event{leased, extended, {Kind: sqllock.Extended, Name: "job", Err: errNetwork}, {Kind: sqllock.Released, Name: "job"}}},

		{"starved", 0, func(t *testing.T, _ *memory.Server, h, _ *host) {
			ctx, cancel := context.WithTimeout(t.Context(), s3)
			defer cancel()
			l := h.locks(t, "job", sqllock.OwnSession())
			_, _ = h.Lock(ctx, "other", sqllock.OwnSession())
			release(t, l)
		}, []sqllock.Event{
			acquired, {Kind: sqllock.Starved, Name: "other", Waited: s1, Err: sqllock.ErrPoolTooSmall}, {Kind: sqllock.Released, Name: "job", Held: s3},
		}},

		{"taken over", s10, func(t *testing.T, _ *memory.Server, h, other *host) {
			conn, err := other.db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := other.locker.TryLock(t.Context(), conn, "job"); err != nil { // without a Pool: nobody lets go of it
				t.Fatal(err)
			}
			time.Sleep(11 * s1)
			release(t, h.locks(t, "job"))
			_ = conn.Close()
		}, []sqllock.Event{
			{Kind: sqllock.Killed, Name: "job", Holder: sqllock.Holder{Session: 1}},
			{Kind: sqllock.TakenOver, Name: "job", Holder: sqllock.Holder{Session: 1}},
			{Kind: sqllock.Acquired, Name: "job", Token: 2},
			{Kind: sqllock.Released, Name: "job"},
		}},

		{"held on", 0, func(t *testing.T, _ *memory.Server, h, _ *host) {
			release(t, h.locks(t, "job", sqllock.AtLeast(s10)))
			time.Sleep(time.Minute)
		}, []sqllock.Event{acquired, {Kind: sqllock.Released, Name: "job"}}},

		{"several", 0, func(t *testing.T, _ *memory.Server, h, other *host) {
			err := h.DoAll(t.Context(), []string{"work", "job"}, func(context.Context, sqllock.Locks) error {
				time.Sleep(s1)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			l := other.locks(t, "job")
			_, _ = h.TryLockAll(t.Context(), []string{"job", "work"})
			ctx, cancel := context.WithTimeout(t.Context(), s5)
			defer cancel()
			_, _ = h.LockAll(ctx, []string{"job", "work"})
			release(t, l)
		}, []sqllock.Event{
			acquired,
			{Kind: sqllock.Acquired, Name: "work"},
			{Kind: sqllock.Released, Name: "work", Held: s1},
			{Kind: sqllock.Released, Name: "job", Held: s1},
			{Kind: sqllock.Busy, Name: "job", Err: sqllock.ErrBusy},
			{Kind: sqllock.Busy, Name: "work", Err: sqllock.ErrBusy},
			{Kind: sqllock.Busy, Name: "job", Waited: s5, Err: context.DeadlineExceeded},
			{Kind: sqllock.Busy, Name: "work", Waited: s5, Err: context.DeadlineExceeded},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *memory.Server) {
				var b sqllock.Backend = s.Backend()
				if test.ttl > 0 {
					b = s.Leases(test.ttl)
				}
				// The namespace is none of the caller's business.
				u := setup{backend: b, locker: []sqllock.Option{sqllock.WithNamespace("billing")}, pool: []sqllock.PoolOption{sqllock.WithMaxConns(2)}}
				if test.name == "lost" {
					u.locker = nil // the server knows the key only
				}
				h, other := newHost(t, s, u), newHost(t, s, u)
				test.f(t, s, h, other)
				h.told(t, test.want...)
			})
		})
	}
}

// TestObservers: each of several is told, and those that are nil are none.
func TestObservers(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		var order log
		note := func(who string) sqllock.Option {
			return sqllock.WithObserver(func(e sqllock.Event) { order.add("%s:%s", who, e.Kind) })
		}
		h := newHost(t, s, setup{locker: []sqllock.Option{note("a"), sqllock.WithObserver(nil), note("b")}})
		release(t, h.locks(t, "job"))
		if got, want := order.text(), "a:acquired b:acquired a:released b:released"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		h.told(t, sqllock.Event{Kind: sqllock.Acquired, Name: "job"}, sqllock.Event{Kind: sqllock.Released, Name: "job"})
	})
}

// TestLogTo: what is written, and at which level.
func TestLogTo(t *testing.T) {
	var out bytes.Buffer
	options := &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}
	holder := sqllock.Holder{Session: 7, Process: "web1/42 invoices", Key: "billing:job"}
	for _, test := range []struct {
		e    sqllock.Event
		want string
	}{
		{sqllock.Event{Kind: sqllock.Acquired, Name: "job", Waited: time.Second, Token: 42}, `level=DEBUG msg="lock acquired" name=job waited=1s token=42`},
		{sqllock.Event{Kind: sqllock.Acquired, Name: "job"}, `level=DEBUG msg="lock acquired" name=job`},
		{sqllock.Event{Kind: sqllock.Busy, Name: "job", Waited: time.Minute, Err: errNetwork}, `level=DEBUG msg="lock busy" name=job waited=1m0s error="network unreachable"`},
		{sqllock.Event{Kind: sqllock.Released, Name: "job", Held: time.Hour}, `level=DEBUG msg="lock released" name=job held=1h0m0s`},
		{sqllock.Event{Kind: sqllock.Extended, Name: "job"}, `level=DEBUG msg="lock extended" name=job`},
		{sqllock.Event{Kind: sqllock.Extended, Name: "job", Err: errNetwork}, `level=WARN msg="lock extended" name=job error="network unreachable"`},
		{sqllock.Event{Kind: sqllock.Lost, Name: "job", Held: time.Second, Err: errNetwork}, `level=WARN msg="lock lost" name=job held=1s error="network unreachable"`},
		{sqllock.Event{Kind: sqllock.Expired, Name: "job", Held: time.Second, Err: errNetwork}, `level=WARN msg="lock expired" name=job held=1s error="network unreachable"`},
		{sqllock.Event{Kind: sqllock.Starved, Name: "job", Waited: time.Second, Err: errNetwork}, `level=WARN msg="lock starved" name=job waited=1s error="network unreachable"`},
		{sqllock.Event{Kind: sqllock.TakenOver, Name: "job", Holder: holder}, `level=WARN msg="lock taken over" name=job holder.session=7 holder.process="web1/42 invoices"`},
		{sqllock.Event{Kind: sqllock.Killed, Name: "job", Holder: holder}, `level=WARN msg="lock killed" name=job holder.session=7 holder.process="web1/42 invoices"`},
		{sqllock.Event{Kind: sqllock.Repaired, Name: "job", Err: errNetwork}, `level=ERROR msg="lock repaired" name=job error="network unreachable"`},
	} {
		out.Reset()
		sqllock.LogTo(slog.New(slog.NewTextHandler(&out, options)))(test.e)
		if got := strings.TrimSpace(out.String()); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
	// Durations are logged as such, and what is not wanted is not made.
	out.Reset()
	log := slog.New(slog.NewJSONHandler(&out, options))
	sqllock.LogTo(log)(sqllock.Event{Kind: sqllock.Acquired, Name: "job", Waited: time.Second})
	var line struct{ Waited time.Duration }
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line.Waited != time.Second {
		t.Errorf("%s: %v", out.String(), err)
	}
	out.Reset()
	options.Level = slog.LevelWarn
	observe := sqllock.LogTo(slog.New(slog.NewTextHandler(&out, options)))
	observe(sqllock.Event{Kind: sqllock.Acquired, Name: "job"})
	if out.Len() != 0 {
		t.Errorf("logged in spite of the level: %s", out.String())
	}
	if n := testing.AllocsPerRun(100, func() { observe(sqllock.Event{Kind: sqllock.Acquired, Name: "job", Waited: time.Second}) }); n != 0 {
		t.Errorf("%v allocations for what is not logged", n)
	}
}

func TestPoolStats(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{backend: s.Leases(10 * time.Second)}), newHost(t, s, setup{backend: s.Leases(10 * time.Second)})
		if s := h.Stats(); len(s.Names) != 0 || s.Names == nil || s.Conns != 0 || s.Held != 0 || s.Waits != 0 {
			t.Errorf("at first: %+v", s)
		}
		l, kept := h.locks(t, "job"), h.locks(t, "kept", sqllock.KeepAlive(time.Hour), sqllock.TTL(3*time.Second))
		theirs := other.locks(t, "theirs")
		var waiting []<-chan result
		for _, name := range []string{"job", "job", "theirs", "theirs"} {
			waiting = append(waiting, h.begin(t.Context(), name))
		}
		_, _ = h.TryLock(t.Context(), "job")
		_, _ = h.TryLock(t.Context(), "job")
		time.Sleep(8 * time.Millisecond)
		if s := h.Stats(); s.Conns != 2 || s.Held != 2 || s.Waits != 4 {
			t.Errorf("%d connections, %d held, %d wait", s.Conns, s.Held, s.Waits)
		}
		release(t, l)
		release(t, granted(t, waiting[0]))
		expires := granted(t, waiting[1])
		release(t, theirs)
		release(t, granted(t, waiting[2]))
		release(t, granted(t, waiting[3]))
		<-expires.Done()
		_ = expires.Release(t.Context())
		release(t, kept)
		names := h.Stats().Names
		const ms = time.Millisecond
		for name, want := range map[string]sqllock.NameStats{
			"job":    {Acquired: 3, HandedOn: 2, Busy: 2, Released: 2, Expired: 1, Waited: 16 * ms, Held: 8*ms + 10*time.Second},
			"theirs": {Acquired: 2, HandedOn: 1, Released: 2, Waited: 16 * ms},
			"kept":   {Acquired: 1, Released: 1, Extended: 10, Held: 10*time.Second + 8*ms},
		} {
			if got := names[name]; got != want {
				t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, want)
			}
		}
		names["job"] = sqllock.NameStats{} // it is a copy
		if h.Stats().Names["job"].Acquired != 3 {
			t.Error("the Stats are those of the Pool")
		}
	})
}

// TestPoolStatsOldest: what hangs is seen by its age, before it has ended.
func TestPoolStatsOldest(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		want := func(lock, wait time.Duration) {
			t.Helper()
			if s := h.Stats(); s.OldestLock != lock || s.OldestWait != wait {
				t.Errorf("the oldest lock is of %v, the oldest wait of %v, want %v and %v", s.OldestLock, s.OldestWait, lock, wait)
			}
		}
		const minute = time.Minute
		want(0, 0)
		job := h.locks(t, "job")
		time.Sleep(minute)
		work := h.locks(t, "work", sqllock.AtLeast(5*minute))
		first := h.begin(t.Context(), "job")
		time.Sleep(minute)
		second := h.begin(t.Context(), "job")
		time.Sleep(minute)
		want(3*minute, 2*minute)
		release(t, job)
		job = granted(t, first)
		want(2*minute, minute) // "work", and the second
		release(t, work, job)
		release(t, granted(t, second))
		time.Sleep(minute)
		want(3*minute, 0) // its holder has released it, and it is held on
		time.Sleep(5 * minute)
		want(0, 0)
	})
}

// TestPoolHolder: the server knows of the locks of other processes, too.
func TestPoolHolder(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		u := setup{locker: []sqllock.Option{sqllock.WithNamespace("billing")}}
		h, other := newHost(t, s, u), newHost(t, s, u)
		for _, of := range []*host{h, other} {
			l := of.locks(t, "job")
			holder, err := h.Holder(t.Context(), "job")
			if err != nil || holder.Key != "billing:job" || holder.Session != l.Grant().Session || !holder.Alive {
				t.Errorf("%+v, %v", holder, err)
			}
			release(t, l)
		}
		if _, err := h.Holder(t.Context(), "job"); !errors.Is(err, sqllock.ErrNotHeld) {
			t.Errorf("of a free one: %v", err)
		}
		h.db.SetMaxOpenConns(1) // and the application uses it
		c, err := h.db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := h.Holder(ctx, "job"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without a connection: %v", err)
		}
		_ = c.Close()
	})
}

// TestPoolStatsNames: an application that makes up names does not fill the memory.
func TestPoolStatsNames(t *testing.T) {
	const names = 1000
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h := newHost(t, s, setup{})
		for i := range names {
			release(t, h.locks(t, fmt.Sprint("job", i)))
		}
		if n := len(h.Stats().Names); n != names {
			t.Errorf("%d names", n)
		}
		for i := range 100 {
			l := h.locks(t, fmt.Sprint("more", i))
			next := h.begin(t.Context(), fmt.Sprint("more", i))
			release(t, l)
			release(t, granted(t, next))
		}
		release(t, h.locks(t, "job7"))
		stats := h.Stats().Names
		if c := stats[sqllock.OtherNames]; len(stats) != names+1 || c.Acquired != 200 || c.Released != 200 || c.HandedOn != 100 {
			t.Errorf("%d names, the others are %+v", len(stats), c)
		}
		if c := stats["job7"]; c.Acquired != 2 {
			t.Errorf("one of the first: %+v", c)
		}
	})
}

func TestPoolSnapshot(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Server) {
		h, other := newHost(t, s, setup{backend: s.Leases(time.Minute), pool: []sqllock.PoolOption{sqllock.WithMaxConns(2)}}), newHost(t, s, setup{})
		empty, err := json.Marshal(h.Snapshot())
		if want := `{"Held":[],"Waiting":[]}`; err != nil || string(empty) != want {
			t.Errorf("got  %s, %v\nwant %s", empty, err, want)
		}
		start := time.Now()
		theirs := other.locks(t, "theirs")
		lock := func(name string, opts ...sqllock.LockOption) (l *sqllock.Lock, at string) {
			at = nextLine()
			l, err := h.Lock(t.Context(), name, opts...)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			return l, at
		}
		job, at := lock("job")
		work, _ := lock("work")
		released, _ := lock("released", sqllock.AtLeast(30*time.Second))
		release(t, released)
		first, second := h.begin(t.Context(), "theirs"), h.begin(t.Context(), "theirs")
		time.Sleep(time.Second)
		own, _ := lock("own", sqllock.OwnSession())
		third := h.begin(t.Context(), "job")
		time.Sleep(time.Second)
		problem := h.begin(t.Context(), "more", sqllock.OwnSession())
		if err := s.Lose("own"); err != nil {
			t.Fatal(err)
		}
		<-own.Done()
		time.Sleep(time.Second)

		snap := h.Snapshot()
		now := time.Now()
		session := job.Grant().Session
		wantHeld := []sqllock.HeldLock{
			{Name: "job", Since: start, Session: session, Sharing: 2, Token: 1, TimeLeft: time.Minute - now.Sub(start)},
			{Name: "work", Since: start.Add(time.Second), Session: session, Sharing: 2, Token: 2, TimeLeft: time.Minute + time.Second - now.Sub(start)},
			{Name: "released", Since: start.Add(2 * time.Second), Session: session, Sharing: 2, Token: 3, TimeLeft: time.Minute + 2*time.Second - now.Sub(start), Released: true},
			{Name: "own", Since: start.Add(4 * time.Second), Session: own.Grant().Session, Token: 4, Lost: true},
		}
		if len(snap.Held) != len(wantHeld) {
			t.Fatalf("held: %+v", snap.Held)
		}
		for i, got := range snap.Held {
			want := wantHeld[i]
			want.By, want.For = at, now.Sub(want.Since)
			if want.Released { // counted from then on
				got.Since, want.For = want.Since, got.For
			}
			if !got.Since.Equal(want.Since) {
				t.Errorf("%s is held since %v, want %v", got.Name, got.Since, want.Since)
			}
			got.Since = want.Since
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		}
		by := "github.com/sqllock/go-sqllock/sqllock_test.(*host).begin.func1:"
		wantWaiting := []sqllock.WaitingCall{
			{Name: "theirs", Since: start.Add(3 * time.Second), Holder: "another process"},
			{Name: "theirs", Since: start.Add(3 * time.Second), Holder: by},
			{Name: "job", Since: start.Add(5 * time.Second), Holder: at},
			{Name: "more", Since: start.Add(6 * time.Second), Problem: "of the 2 that the Pool may take, 1 are used by locks with OwnSession (\"own\" of "},
		}
		if len(snap.Waiting) != len(wantWaiting) {
			t.Fatalf("waiting: %+v", snap.Waiting)
		}
		if snap.Waiting[0].Holder != "another process" { // two of one moment
			snap.Waiting[0], snap.Waiting[1] = snap.Waiting[1], snap.Waiting[0]
		}
		for i, got := range snap.Waiting {
			want := wantWaiting[i]
			if got.Name != want.Name || !got.Since.Equal(want.Since) || got.For != now.Sub(want.Since) || !strings.HasPrefix(got.By, by) ||
				!strings.HasPrefix(got.Holder, want.Holder) || (got.Holder == "") != (want.Holder == "") ||
				!strings.Contains(got.Problem, want.Problem) || (got.Problem == "") != (want.Problem == "") {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		}
		var decoded sqllock.Snapshot
		text, err := json.Marshal(snap)
		if err == nil {
			err = json.Unmarshal(text, &decoded)
		}
		if err != nil || len(decoded.Held) != 4 || decoded.Held[0].By != at || decoded.Waiting[3].Problem != snap.Waiting[3].Problem {
			t.Errorf("as JSON: %s, %v", text, err)
		}

		_ = own.Release(t.Context())
		release(t, granted(t, problem), job, work, theirs)
		release(t, granted(t, third), granted(t, first))
		release(t, granted(t, second))
		time.Sleep(time.Minute)
		if snap := h.Snapshot(); len(snap.Held) != 0 || len(snap.Waiting) != 0 {
			t.Errorf("at the end: %+v", snap)
		}
	})
}
