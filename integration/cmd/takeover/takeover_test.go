package main

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// TestTakeover: things happen in the order that docs/moments.md says, and are drawn.
func TestTakeover(t *testing.T) {
	switch {
	case testing.Short() || testdb.MySQL.Skipped():
		t.Skip("needs a server")
	case testdb.MySQL.EnvDSN() != "":
		t.Skip("makes a database, so it needs an instance of its own")
	}
	s, err := testdb.Start(t.Context(), testdb.MySQL)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop() //nolint:errcheck // it ends with the process
	rec, err := record(t.Context(), s, settings{ttl: 3 * time.Second, rows: 5_000})
	if err != nil {
		t.Fatal(err)
	}
	order := []struct {
		what string
		at   time.Duration
	}{
		{"granted", rec.granted},
		{"wrote", rec.wrote},
		{"the next one waits", rec.nextWaits},
		{"the third one waits", rec.thirdWaits},
		{"the TTL is over", rec.obsolete},
		{"killed", rec.killed},
		{"the next one is granted the lock", rec.nextGranted},
		{"the holder wakes up", rec.woke},
		{"its COMMIT is refused", rec.refused},
		{"the next one commits", rec.committed},
		{"the third one is granted the lock", rec.third},
		{"the end", rec.end},
	}
	for i, moment := range order[1:] {
		if moment.at <= order[i].at {
			t.Errorf("%s at %v, and %s at %v", order[i].what, order[i].at, moment.what, moment.at)
		}
	}
	if rec.uncommitted == 0 || rec.uncommitted >= rec.nextGranted {
		t.Errorf("what the holder wrote was there at %v, and the next one was granted the lock at %v", rec.uncommitted, rec.nextGranted)
	}
	if rec.victim != rec.sessions[0] {
		t.Errorf("session %d was ended, that of the holder is %d", rec.victim, rec.sessions[0])
	}
	if !slices.IsSorted(rec.tokens[:]) || rec.tokens[0] == 0 || rec.tokens[0] == rec.tokens[1] || rec.tokens[1] == rec.tokens[2] {
		t.Errorf("the tokens are %v", rec.tokens)
	}
	if rec.seen != [3]int{100, 100, 99} || rec.left != 98 {
		t.Errorf("they found a stock of %v, and left %d", rec.seen, rec.left)
	}
	if !errors.Is(rec.refusal, txguard.ErrRolledBack) || !errors.Is(rec.refusal, sqllock.ErrLost) {
		t.Errorf("the holder got %v", rec.refusal)
	}
	picture := rec.svg()
	for d := xml.NewDecoder(strings.NewReader(picture)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"<title id=\"t\">A takeover in time</title>", "<desc ", "prefers-color-scheme:dark", ">8</text>", "KILL CONNECTION"} {
		if !strings.Contains(picture, want) {
			t.Errorf("the picture has no %q", want)
		}
	}
}
