package torture

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// director brings about the faults. What it does is drawn from the seed, and when
// depends on the machine.
type director struct {
	f       *fleet
	s       *testdb.Server
	lockers []*sqllock.Locker

	mu    sync.Mutex
	count map[string]int
	err   error
}

// fault does something bad, and returns what; "" if it could not be done.
type fault func(ctx context.Context, rng *rand.Rand) string

// lane is faults that come one after the other; lanes overlap.
type lane struct {
	faults []fault
	pause  time.Duration // between two at most, and half of that at least
}

func newDirector(f *fleet, s *testdb.Server) *director {
	lockers := lockers(f.d, f.d.name, func() *sql.DB { return nil })
	return &director{f: f, s: s, lockers: lockers, count: map[string]int{}}
}

// run brings about faults until ctx ends.
func (d *director) run(ctx context.Context) {
	lanes := []lane{
		{[]fault{d.stop, d.stop, d.stopHolder, d.kill, d.killThere}, 200 * time.Millisecond},
		{[]fault{d.killSession, d.killSession, d.killAtCommit, d.killAtCommit, d.reset, d.resetAtCommit, d.cutAtCommit, d.delay}, 200 * time.Millisecond},
	}
	// A crash would end what the control is there to let happen.
	if d.s.Private() && d.f.cfg.Guarded {
		lanes = append(lanes, lane{[]fault{d.crash}, min(d.f.cfg.Duration, 16*time.Second)}) // one at least
	}
	var wg sync.WaitGroup
	for i, l := range lanes {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(d.f.cfg.Seed, uint64(2+i)))
			for sleep(ctx, l.pause/2+time.Duration(rng.Int64N(int64(l.pause)/2))) {
				if what := l.faults[rng.IntN(len(l.faults))](ctx, rng); what != "" {
					d.mu.Lock()
					d.count[what]++
					d.mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
}

// sleep reports whether ctx lives after that.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (d *director) faults() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.count {
		n += c
	}
	return n
}

// failed remembers an error that spoils the run.
func (d *director) failed(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = err
	}
}

func (d *director) holder(ctx context.Context, shard int) (sqllock.Holder, bool) {
	h, err := d.lockers[shard].Holder(ctx, d.f.d.db, name(shard))
	return h, err == nil && h.Alive
}

func (d *director) killID(ctx context.Context, session int64) bool {
	return d.f.d.end(ctx, d.f.d.db, session) == nil
}

// anyPoint is where to do something to p. Without the guard the one is enough that
// shows it.
func (d *director) anyPoint(rng *rand.Rand, p *process) point {
	points := []point{atThink}
	if d.f.cfg.Guarded {
		points = append(points, atCommit)
		if d.f.d.forms()[p.home].fenced {
			points = append(points, atFence)
		}
	}
	return points[rng.IntN(len(points))]
}

// stop stops a process in the middle of its work for longer than its lock lives. One
// that has no TTL is ended by killing its session.
func (d *director) stop(ctx context.Context, rng *rand.Rand) string {
	p := d.f.pick(rng)
	e, ok := d.f.order(ctx, p, order{d.anyPoint(rng, p), 500 * time.Millisecond})
	if !ok {
		return ""
	}
	return d.freeze(ctx, p, e.Shard)
}

// stopHolder stops the process that holds a lock with a TTL, wherever it is.
func (d *director) stopHolder(ctx context.Context, rng *rand.Rand) string {
	var leased []int
	for shard, form := range d.f.d.forms() {
		if form.leases != "" {
			leased = append(leased, shard)
		}
	}
	shard := leased[rng.IntN(len(leased))]
	h, ok := d.holder(ctx, shard)
	if !ok {
		return ""
	}
	p := d.f.named(h.Process)
	if p == nil {
		return ""
	}
	return d.freeze(ctx, p, shard)
}

// freeze stops p until another one has got the lock of the shard and has committed
// something, or waits for what p has locked in the database.
func (d *director) freeze(ctx context.Context, p *process, shard int) string {
	if !p.signal(syscall.SIGSTOP) {
		return ""
	}
	defer p.signal(syscall.SIGCONT)
	before, held := d.holder(ctx, shard)
	if held && d.f.d.forms()[shard].leases == "" && !d.killID(ctx, before.Session) {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, ttl+4*time.Second)
	defer cancel()
	err := poll(ctx, "another process to get the lock", func() (bool, error) {
		now, ok := d.holder(ctx, shard)
		return ok && now.Session != before.Session, nil
	})
	if err != nil {
		return "process stopped"
	}
	then, _ := d.f.committed(shard)
	ctx, cancel = context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = poll(ctx, "another process to commit", func() (bool, error) {
		now, _ := d.f.committed(shard)
		return now > then+1, nil
	})
	return "process stopped until its lock was another's"
}

// kill ends a process, wherever it is.
func (d *director) kill(ctx context.Context, rng *rand.Rand) string {
	return d.end(ctx, d.f.pick(rng), "process killed")
}

// killThere ends a process in the middle of its work.
func (d *director) killThere(ctx context.Context, rng *rand.Rand) string {
	p := d.f.pick(rng)
	at := d.anyPoint(rng, p)
	if _, ok := d.f.order(ctx, p, order{at, 3 * time.Millisecond}); !ok {
		return ""
	}
	time.Sleep(time.Duration(rng.Int64N(int64(6 * time.Millisecond))))
	return d.end(ctx, p, "process killed near "+string(at))
}

func (d *director) end(ctx context.Context, p *process, what string) string {
	ok, err := d.f.kill(ctx, p)
	if err != nil {
		d.failed(err)
	}
	if !ok {
		return ""
	}
	return what
}

// killSession ends the session of a lock.
func (d *director) killSession(ctx context.Context, rng *rand.Rand) string {
	shard := rng.IntN(len(d.lockers))
	h, ok := d.holder(ctx, shard)
	if !ok || !d.killID(ctx, h.Session) {
		return ""
	}
	return "session of a lock killed"
}

// killAtCommit ends the session of the work before, while or after it commits.
func (d *director) killAtCommit(ctx context.Context, rng *rand.Rand) string {
	p := d.f.pick(rng)
	e, ok := d.f.order(ctx, p, order{atCommit, time.Duration(1+rng.IntN(3)) * time.Millisecond})
	if !ok || e.Session == 0 {
		return ""
	}
	time.Sleep(time.Duration(rng.Int64N(int64(5 * time.Millisecond))))
	if !d.killID(ctx, e.Session) {
		return ""
	}
	return "session of work killed near COMMIT"
}

func stream(rng *rand.Rand) string { return []string{upstream, downstream}[rng.IntN(2)] }

// reset resets the connections of a process.
func (d *director) reset(ctx context.Context, rng *rand.Rand) string {
	return d.resetOf(ctx, rng, d.f.pick(rng), "connections reset")
}

func (d *director) resetOf(ctx context.Context, rng *rand.Rand, p *process, what string) string {
	end, err := p.proxy.reset(ctx, stream(rng))
	if err != nil {
		return "" // there is one already
	}
	defer end()
	sleep(ctx, time.Duration(20+rng.IntN(150))*time.Millisecond)
	return what
}

// resetAtCommit has a COMMIT, or the answer to it, get lost.
func (d *director) resetAtCommit(ctx context.Context, rng *rand.Rand) string {
	p := d.f.pick(rng)
	if _, ok := d.f.order(ctx, p, order{atCommit, 20 * time.Millisecond}); !ok {
		return ""
	}
	return d.resetOf(ctx, rng, p, "connections reset at COMMIT")
}

// cutAtCommit has a COMMIT be on its way still when the process knows already that
// its connection is gone, and asks what became of it.
func (d *director) cutAtCommit(ctx context.Context, rng *rand.Rand) string {
	late := time.Duration(rng.IntN(100)) * time.Millisecond
	if _, ok := d.f.order(ctx, d.f.pick(rng), order{atCut, late}); !ok {
		return ""
	}
	return "COMMIT late on a broken connection"
}

// delay makes the network slow.
func (d *director) delay(ctx context.Context, rng *rand.Rand) string {
	end, err := d.f.pick(rng).proxy.delay(ctx, time.Duration(2+rng.IntN(20))*time.Millisecond)
	if err != nil {
		return ""
	}
	defer end()
	sleep(ctx, 300*time.Millisecond)
	return "network slowed down"
}

// crash kills the server, and starts it on what it has left.
func (d *director) crash(ctx context.Context, _ *rand.Rand) string {
	// Not cut short: without its server nobody can be asked what was committed.
	if err := d.s.Crash(context.WithoutCancel(ctx)); err != nil {
		d.failed(fmt.Errorf("restarting the server: %w", err))
		return ""
	}
	return "server crashed"
}
