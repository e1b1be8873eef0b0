package main

import (
	"fmt"
	"html"
	"strings"
	"time"
)

// The picture, in pixels.
const (
	width  = 960
	left   = 190 // where the time begins
	right  = width - 24
	top    = 64 // of the first lane
	lane   = 52
	bar    = 22 // its height
	legend = 22 // between two lines of the legend
)

// style is that of the picture: on a card of its own, which follows the reader's choice of
// light or dark where the viewer knows it.
const style = `
.card{fill:#ffffff;stroke:#d0d7de} text{font:13px system-ui,-apple-system,Segoe UI,Helvetica,Arial,sans-serif;fill:#1f2328}
.title{font-size:16px;font-weight:600} .dim{fill:#59636e} .small{font-size:11px}
.axis{stroke:#d0d7de} .ttl{stroke:#bc4c00;stroke-dasharray:5 4} .over{fill:#bc4c00}
.holds{fill:#0072b2} .hangs{fill:#e69f00} .waits{fill:#c9d1d9} .undo{fill:#d55e00} .next{fill:#009e73}
.on{fill:#ffffff;font-size:12px} .dark{fill:#1f2328;font-size:12px}
.mark{fill:#1f2328} .num{fill:#ffffff;font-size:11px;font-weight:600}
@media (prefers-color-scheme:dark){.card{fill:#0d1117;stroke:#3d444d} text{fill:#f0f6fc} .dim{fill:#9198a1} .axis{stroke:#3d444d}
.ttl{stroke:#f0883e} .over{fill:#f0883e} .waits{fill:#3d444d} .waiting{fill:#f0f6fc} .dark{fill:#1f2328} .on{fill:#ffffff} .mark{fill:#f0f6fc} .num{fill:#0d1117}}
`

// drawing is the picture while it is being made.
type drawing struct {
	*strings.Builder

	rec   *recording
	marks int
	lines []string // of the legend
}

func (rec *recording) svg() string {
	d := &drawing{&strings.Builder{}, rec, 0, nil}
	d.axis()
	d.lanes()
	bottom := top + 4*lane + 44
	half := (len(d.lines) + 1) / 2
	for i, line := range d.lines {
		x, y := 24+(i/half)*(width/2-12), bottom+(i%half)*legend
		d.mark(x+8, y-4, i+1)
		d.text(x+24, y, "small", line)
	}
	height := bottom + half*legend + 6
	d.text(24, height-8, "small dim", fmt.Sprintf("Recorded by make takeover on MySQL %s; package table, TTL %v, %d rows to roll back. Times in seconds since the start.", rec.server, rec.ttl, rec.rows))
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" role="img" aria-labelledby="t d">
<title id="t">A takeover in time</title>
<desc id="d">%s</desc>
<style>%s</style>
<rect class="card" x="0.5" y="0.5" width="%d" height="%d" rx="8"/>
%s</svg>
`, width, height+12, html.EscapeString(strings.Join(d.lines, ". ")+"."), style, width-1, height+11, d.String())
}

// x is where a moment is.
func (d *drawing) x(at time.Duration) int {
	return left + int(float64(right-left)*float64(at)/float64(d.rec.end))
}

func (d *drawing) axis() {
	d.text(24, 34, "title", "The holder of a lease hangs, and the next one takes over")
	bottom := top + 4*lane
	for at := time.Duration(0); at <= d.rec.end; at += 500 * time.Millisecond {
		fmt.Fprintf(d, "<line class=\"axis\" x1=\"%d\" y1=\"%d\" x2=\"%[1]d\" y2=\"%[3]d\"/>\n", d.x(at), top-6, bottom)
		fmt.Fprintf(d, "<text class=\"small dim\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">%.1f s</text>\n", d.x(at), bottom+14, at.Seconds())
	}
	over := d.x(d.rec.obsolete)
	fmt.Fprintf(d, "<line class=\"ttl\" x1=\"%d\" y1=\"%d\" x2=\"%[1]d\" y2=\"%[3]d\"/>\n", over, top-14, bottom)
	fmt.Fprintf(d, "<text class=\"small over\" x=\"%d\" y=\"%d\" text-anchor=\"end\">the TTL is over</text>\n", over-6, top-6)
}

// lanes draws who does what, and when; the numbers go through the lanes in the order of time.
func (d *drawing) lanes() {
	rec := d.rec
	for i, name := range []string{"the holder", "its session on the server", "the next one", "a third one"} {
		d.text(24, top+i*lane+bar/2+5, "", name)
	}
	d.bar(0, rec.granted, rec.wrote, "holds", "on", "works")
	d.bar(0, rec.wrote, rec.woke, "hangs", "dark", "hangs: no Extend, no COMMIT, for whatever reason")
	d.bar(0, rec.woke, rec.refused, "undo", "on", "")
	d.bar(1, rec.granted, rec.killed, "holds", "on", "has the lock; its transaction is open")
	d.bar(1, rec.killed, rec.uncommitted, "undo", "on", "rolls back")
	d.bar(2, rec.nextWaits, rec.nextGranted, "waits", "waiting small", "waits, asleep on the server")
	d.bar(2, rec.nextGranted, rec.committed, "next", "on", "has the lock")
	d.bar(3, rec.thirdWaits, rec.third, "waits", "waiting small", "waits")
	d.bar(3, rec.third, rec.end, "next", "on", "")

	d.event(0, rec.granted, "granted, token %d; it writes, and hangs", rec.tokens[0])
	d.event(2, rec.nextWaits, "the others wait, each in one statement, GET_LOCK")
	d.event(1, rec.killed, "a waiter ends the stale session: KILL CONNECTION, if it still has the lock")
	d.event(1, rec.uncommitted, "what it had written is still there, uncommitted, for the last time")
	d.event(2, rec.nextGranted, "granted, token %d; the stock is %d, as it was", rec.tokens[1], rec.seen[1])
	d.event(0, rec.refused, "the holder wakes up, and may not commit: ErrRolledBack, ErrLost")
	d.event(2, rec.committed, "the next one commits, and lets go")
	d.event(3, rec.third, "granted, token %d; the stock is %d", rec.tokens[2], rec.seen[2])
}

func (d *drawing) bar(in int, from, to time.Duration, class, textClass, label string) {
	x, w, y := d.x(from), max(2, d.x(to)-d.x(from)), top+in*lane
	fmt.Fprintf(d, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"3\"/>\n", class, x, y, w, bar)
	if label != "" {
		d.text(x+6, y+bar/2+5, textClass, label)
	}
}

// event puts a number below the lane, and a line into the legend.
func (d *drawing) event(in int, at time.Duration, format string, args ...any) {
	d.marks++
	d.mark(d.x(at), top+in*lane+bar+10, d.marks)
	d.lines = append(d.lines, fmt.Sprintf("%.3f ", at.Seconds())+fmt.Sprintf(format, args...))
}

func (d *drawing) mark(x, y, n int) {
	fmt.Fprintf(d, "<circle class=\"mark\" cx=\"%d\" cy=\"%d\" r=\"8\"/>\n<text class=\"num\" x=\"%[1]d\" y=\"%[3]d\" text-anchor=\"middle\">%[4]d</text>\n", x, y, y+4, n)
}

func (d *drawing) text(x, y int, class, text string) {
	fmt.Fprintf(d, "<text class=\"%s\" x=\"%d\" y=\"%d\">%s</text>\n", class, x, y, html.EscapeString(text))
}
