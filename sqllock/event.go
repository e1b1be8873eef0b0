package sqllock

import (
	"context"
	"log/slog"
	"strings"
	"time"
)

// Event is something that happened to a lock. Observers get it ([WithObserver]).
type Event struct {
	Kind    EventKind
	Name    string        // of the lock, as the caller gave it
	Waited  time.Duration // from the call on, for Acquired, Busy and Starved
	Held    time.Duration // from the grant on, for Released, Lost and Expired
	Token   int64         // of the grant, for Acquired; 0 if there is none
	Session int64         // the server's id of the session, for Released, Lost and Expired; 0 if the backend has not had to ask for it
	Holder  Holder        // whom it was taken from, for TakenOver and Killed
	Err     error         // why, for Busy, Lost, Expired, Starved and Repaired, and for Released by the end of the Pool; of an extension that failed, for Extended
}

// EventKind is a kind of Event.
type EventKind string

// The kinds of events.
const (
	Acquired  EventKind = "acquired"   // a caller holds it now
	Busy      EventKind = "busy"       // a caller did not get it, since another one has it
	Released  EventKind = "released"   // its holder let go of it
	Lost      EventKind = "lost"       // it ended under its holder, or its release was not confirmed
	Expired   EventKind = "expired"    // its TTL ended under its holder
	Extended  EventKind = "extended"   // its TTL was prolonged, or, with an error, was to be
	Starved   EventKind = "starved"    // a caller has waited a second for a connection, and goes on waiting
	TakenOver EventKind = "taken over" // what a holder had left behind was removed
	Killed    EventKind = "killed"     // the session of a holder whose TTL was over was ended
	Repaired  EventKind = "repaired"   // a damaged lock table was repaired
)

// level is that of the log: what somebody should look into is a warning.
func (k EventKind) level() slog.Level {
	switch k {
	case Lost, Expired, Starved, TakenOver, Killed:
		return slog.LevelWarn
	case Repaired:
		return slog.LevelError
	}
	return slog.LevelDebug
}

// LogTo returns an observer that writes events to log: what happens to every lock
// at slog.LevelDebug; a loss, an expiry, a takeover, a kill, and a wait for a
// connection, a release by the end of the Pool, and an extension that failed at
// slog.LevelWarn; a damaged table at slog.LevelError. Attributes
// are those fields of the [Event] that are not zero, durations as such.
func LogTo(log *slog.Logger) func(Event) {
	return func(e Event) {
		ctx, level := context.Background(), e.Kind.level() //nolint:forbidigo // there is none: a log handler takes values from it only
		if (e.Kind == Extended || e.Kind == Released) && e.Err != nil {
			level = slog.LevelWarn
		}
		if !log.Enabled(ctx, level) {
			return
		}
		log.LogAttrs(ctx, level, "lock "+string(e.Kind), e.attrs()...)
	}
}

func (e Event) attrs() []slog.Attr {
	as := []slog.Attr{slog.String("name", e.Name)}
	if e.Waited != 0 {
		as = append(as, slog.Duration("waited", e.Waited))
	}
	if e.Held != 0 {
		as = append(as, slog.Duration("held", e.Held))
	}
	if e.Token != 0 {
		as = append(as, slog.Int64("token", e.Token))
	}
	if e.Session != 0 && e.Kind != Released {
		as = append(as, slog.Int64("session", e.Session))
	}
	if h := e.Holder; h.Session != 0 {
		as = append(as, slog.Group("holder", slog.Int64("session", h.Session), slog.String("process", h.Process)))
	}
	if e.Err != nil {
		as = append(as, slog.String("error", strings.ReplaceAll(e.Err.Error(), "sqllock: ", "")))
	}
	return as
}
