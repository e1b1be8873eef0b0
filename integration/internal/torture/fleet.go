package torture

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is one of the fleet, seen from its parent.
type process struct {
	name  string
	home  int // the shard that it works on most
	proxy *proxy
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ready chan struct{}
	at    chan event    // it waits where it was ordered to
	done  chan struct{} // closed when it has ended, before which the following may not be read
	err   error
	text  strings.Builder // what else it wrote
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) signal(s os.Signal) bool { return p.cmd.Process.Signal(s) == nil }

// fleet is the processes, each in its slot with its proxy, and what they tell.
type fleet struct {
	cfg Config
	d   *database
	rng *rand.Rand

	mu         sync.Mutex
	slots      []*process
	all        []*process
	killed     map[string]bool
	journal    []event
	violations []string
	commits    map[int]int // told, by shard
	total      int         // of them
}

func newFleet(ctx context.Context, cfg Config, d *database, addr string) (*fleet, error) {
	f := &fleet{cfg: cfg, d: d, rng: rand.New(rand.NewPCG(cfg.Seed, 1)), killed: map[string]bool{}, commits: map[int]int{}}
	for slot := range cfg.Processes {
		proxy, err := newProxy(fmt.Sprint("slot", slot), addr)
		if err != nil {
			return f, err
		}
		p, err := f.spawn(ctx, slot, proxy)
		if err != nil {
			return f, err
		}
		f.slots = append(f.slots, p)
	}
	for _, p := range f.slots {
		select {
		case <-p.ready:
		case <-p.done:
			return f, fmt.Errorf("process %s did not start: %w\n%s", p.name, p.err, &p.text)
		case <-ctx.Done():
			return f, ctx.Err()
		}
	}
	return f, nil
}

// spawn starts a process that does not outlive this one, on Linux at least.
func (f *fleet) spawn(ctx context.Context, slot int, proxy *proxy) (*process, error) {
	p := &process{
		name: fmt.Sprintf("%d.%d", slot, len(f.all)), home: slot % len(f.d.forms()), proxy: proxy,
		ready: make(chan struct{}), at: make(chan event, 1), done: make(chan struct{}),
	}
	text, err := json.Marshal(job{
		Kind: f.cfg.Kind, DSN: f.d.dsn, Proxy: proxy.Listen, Namespace: f.d.name,
		Process: p.name, Seed: f.rng.Uint64(), Home: p.home, Guarded: f.cfg.Guarded,
	})
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), self, f.cfg.Args...)
	p.cmd.Env = append(os.Environ(), jobEnv+"="+string(text))
	p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	if field := reflect.ValueOf(p.cmd.SysProcAttr).Elem().FieldByName("Pdeathsig"); field.IsValid() {
		field.Set(reflect.ValueOf(syscall.SIGKILL))
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stderr = p.cmd.Stdout
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	f.all = append(f.all, p)
	go f.listen(p, out)
	return p, nil
}

// listen takes what a process tells until it has ended.
func (f *fleet) listen(p *process, out io.Reader) {
	defer close(p.done)
	for lines := bufio.NewReader(out); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			break // a line that was cut short tells nothing
		}
		var e event
		if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &e) != nil {
			p.text.WriteString(line)
			continue
		}
		switch {
		case e.Ready:
			close(p.ready)
		case e.At != "":
			select {
			case p.at <- e:
			default: // nobody waits for it
			}
		default:
			f.note(e, line)
		}
	}
	p.err = p.cmd.Wait()
}

func (f *fleet) note(e event, line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cfg.Journal != nil {
		_, _ = io.WriteString(f.cfg.Journal, line) // is for people
	}
	f.journal = append(f.journal, e)
	if e.Violation != "" {
		f.violations = append(f.violations, e.Violation)
	}
	if e.Outcome == committed {
		f.commits[e.Shard]++
		f.total++
	}
}

// committed counts what was told to be committed on a shard, and on all.
func (f *fleet) committed(shard int) (there, total int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.commits[shard], f.total
}

// pick returns any process.
func (f *fleet) pick(rng *rand.Rand) *process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.slots[rng.IntN(len(f.slots))]
}

// named returns the process that calls itself "host/pid program", nil if none does.
func (f *fleet) named(name string) *process {
	pid, _, _ := strings.Cut(name[strings.LastIndex(name, "/")+1:], " ")
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.slots {
		if strconv.Itoa(p.pid()) == pid {
			return p
		}
	}
	return nil
}

// order has p wait at a point, and returns when it does. It is false if p does not
// get there in time.
func (f *fleet) order(ctx context.Context, p *process, o order) (event, bool) {
	select {
	case <-p.at: // of an order that came too late
	default:
	}
	if _, err := fmt.Fprintln(p.stdin, o); err != nil {
		return event{}, false
	}
	select {
	case e := <-p.at:
		return e, e.At == o.at
	case <-p.done:
	case <-ctx.Done():
	case <-time.After(3 * time.Second):
	}
	return event{}, false
}

// kill ends p as kill -9 does, and starts another process in its slot. It is false
// if that has been done already.
func (f *fleet) kill(ctx context.Context, p *process) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for slot := range f.slots {
		if f.slots[slot] != p {
			continue
		}
		f.killed[p.name] = true
		if err := p.cmd.Process.Kill(); err != nil {
			return false, err
		}
		var err error
		f.slots[slot], err = f.spawn(ctx, slot, p.proxy)
		if err != nil {
			f.slots[slot] = p
		}
		return true, err
	}
	return false, nil
}

// end has the processes stop, and returns when all have ended. It fails if one has
// not stopped as it should.
func (f *fleet) end(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*patience)
	defer cancel()
	for _, p := range f.all {
		_ = p.stdin.Close() // its end is what counts
	}
	for _, p := range f.all {
		select {
		case <-p.done:
		case <-ctx.Done():
			_ = p.signal(syscall.SIGQUIT) // so that it says where it hangs
			time.AfterFunc(time.Second, func() { _ = p.cmd.Process.Kill() })
			<-p.done
			err = errors.Join(err, fmt.Errorf("process %s did not stop\n%s", p.name, &p.text))
		}
		if p.err != nil && !f.killed[p.name] {
			err = errors.Join(err, fmt.Errorf("process %s: %w\n%s", p.name, p.err, &p.text))
		}
	}
	for _, p := range f.all {
		p.proxy.Stop() // that of a slot, so maybe once more
	}
	return err
}
