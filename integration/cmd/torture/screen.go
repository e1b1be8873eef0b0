package main

import (
	"fmt"
	"os"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"
)

// screen shows how far a run is.
type screen struct {
	name    string
	writer  progress.Writer
	tracker *progress.Tracker
	ended   chan struct{}
}

func newScreen(to *os.File, name string, duration time.Duration) *screen {
	s := &screen{name: name, writer: progress.NewWriter(), ended: make(chan struct{})}
	s.tracker = &progress.Tracker{Message: name, Total: duration.Milliseconds(), AutoStopDisabled: true}
	s.writer.SetOutputWriter(to)
	s.writer.SetMessageLength(50)
	s.writer.SetTrackerLength(30)
	s.writer.SetUpdateFrequency(250 * time.Millisecond)
	if info, err := to.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		s.writer.SetUpdateFrequency(time.Hour) // a log needs the end only
	}
	s.writer.Style().Visibility.Value = false
	s.writer.AppendTracker(s.tracker)
	go func() {
		defer close(s.ended)
		s.writer.Render()
	}()
	return s
}

func (s *screen) progress(gone time.Duration, transactions, faults int) {
	s.tracker.UpdateMessage(fmt.Sprintf("%s: %d transactions, %d faults", s.name, transactions, faults))
	s.tracker.SetValue(gone.Milliseconds())
}

func (s *screen) stop(err error) {
	if err != nil {
		s.tracker.MarkAsErrored()
	} else {
		s.tracker.MarkAsDone()
	}
	s.writer.Stop()
	<-s.ended
}
