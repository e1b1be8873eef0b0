package lockhttp

import (
	_ "embed" // the page
	"fmt"
	"html/template"
	"io"
	"math"
	"sync"
	"time"
)

//go:embed page.html
var pageText string

// maxRows is how many rows of a table the page shows.
const maxRows = 1000

// page is the template, made when it is needed first: who mounts no handler pays nothing.
//
//nolint:gochecknoglobals // made once of a file
var page = sync.OnceValues(func() (*template.Template, error) {
	return template.New("page.html").Funcs(template.FuncMap{
		"duration": duration,
		"utc":      func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") + " UTC" },
		"iso":      func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"more":     func(n int) int { return max(n-maxRows, 0) },
	}).Parse(pageText)
})

// view is what the template shows.
type view struct {
	report

	Nonce   string
	Refresh int
}

func write(w io.Writer, r report, q query, nonce string) error {
	t, err := page()
	if err != nil {
		return err
	}
	return t.Execute(w, view{r, nonce, q.refresh})
}

// The rows that are shown.
func (p pool) HeldRows() []held       { return p.Held[:min(len(p.Held), maxRows)] }
func (p pool) WaitingRows() []waiting { return p.Waiting[:min(len(p.Waiting), maxRows)] }
func (p pool) CountRows() []counts    { return p.Counts[:min(len(p.Counts), maxRows)] }

// Elsewhere is that the server has to be asked who holds the lock.
func (w waiting) Elsewhere() bool { return w.Holder == "another process" }

// duration is for people: 12.3 ms, 4.5 s, 3m20s.
func duration(seconds float64) string {
	switch s := math.Abs(seconds); {
	case s == 0:
		return "0 s"
	case s < .9995:
		return fmt.Sprintf("%.3g ms", seconds*1000)
	case s < 60:
		return fmt.Sprintf("%.1f s", seconds)
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}
