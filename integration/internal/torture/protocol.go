package torture

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

const jobEnv = "SQLLOCK_TORTURE_JOB"

// job is what a process is to do.
type job struct {
	Kind      testdb.Kind
	DSN       string
	Proxy     string // the address to use in place of the server's
	Namespace string // and name of the database
	Process   string // its name, which no other one has
	Seed      uint64
	Home      int // the shard that it works on most
	Guarded   bool
}

// outcome is what became of a run of the function, as its process was told.
type outcome string

const (
	committed  outcome = "committed"
	rolledBack outcome = "rolled back"
	notBegun   outcome = "not begun"
	unguarded  outcome = "unguarded"
	unknown    outcome = "unknown"
	skipped    outcome = "skipped" // by TryDo
)

// event is a line that a process writes. The pipe keeps it when the process is
// killed.
type event struct {
	Ready bool `json:",omitempty"`

	// At is the point where it waits for a moment, as it was ordered to.
	At      point `json:",omitempty"`
	Session int64 `json:",omitempty"` // that the work is done on

	Shard   int
	Attempt string  `json:",omitempty"`
	Outcome outcome `json:",omitempty"` // of the last run of the function
	Runs    int     `json:",omitempty"` // of the function; the ones before the last were rolled back
	Lost    bool    `json:",omitempty"` // the answer to a COMMIT was lost
	Settled outcome `json:",omitempty"` // what the fence table told of an unknown outcome
	Text    string  `json:",omitempty"` // the error

	Violation string `json:",omitempty"` // of what txguard documents
}

// point is one of an attempt, where something can be done to a process.
type point string

const (
	atThink  point = "think"  // between reading and writing
	atFence  point = "fence"  // when the lock has been checked, before the fence is passed
	atCommit point = "commit" // before COMMIT is sent
	atCut    point = "cut"    // when COMMIT is sent; it arrives later, and the answer never
)

// outbox writes events.
type outbox struct {
	mu sync.Mutex
	to io.Writer
}

func (o *outbox) put(e event) {
	line, err := json.Marshal(e)
	if err != nil {
		panic(err) // event has nothing that can't be
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = o.to.Write(append(line, '\n')) // without a parent there is nobody to tell
}

// order has a process wait, or COMMIT be late, at the next such point, and say so.
type order struct {
	at     point
	linger time.Duration
}

func (o order) String() string { return fmt.Sprintf("%s %d", o.at, o.linger.Milliseconds()) }

// inbox is what a process was told to do.
type inbox struct {
	mu      sync.Mutex
	next    order
	stopped bool
}

// read takes orders until their end, which is the one to stop.
func (i *inbox) read(from io.Reader) {
	for lines := bufio.NewScanner(from); lines.Scan(); {
		var o order
		var ms int64
		if _, err := fmt.Fscan(strings.NewReader(lines.Text()), &o.at, &ms); err != nil {
			panic(err) // the parent is of the same build
		}
		o.linger = time.Duration(ms) * time.Millisecond
		i.mu.Lock()
		i.next = o
		i.mu.Unlock()
	}
	i.mu.Lock()
	i.stopped = true
	i.mu.Unlock()
}

func (i *inbox) done() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.stopped
}

// pending reports whether there is an order.
func (i *inbox) pending() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.next.at != ""
}

// take returns for how long something was ordered for a point, if it was.
func (i *inbox) take(at point) (linger time.Duration, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.next.at != at {
		return 0, false
	}
	linger = i.next.linger
	i.next = order{}
	return linger, true
}
