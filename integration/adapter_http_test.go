package integration

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/sqllock/go-sqllock/adapter/lockhttp"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/pgadvisory"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// browser is what SKIP_SERVERS calls the Chromium that servers/browser.sh installs.
const browser testdb.Kind = "browser"

// browsers are its names, as servers/browser.sh has them.
var browsers = []string{
	"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless-shell", "chrome",
	"/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
}

// chromium is a browser that runs.
type chromium struct{ ctx context.Context }

// tab is a tab of a browser, and what has gone wrong in it.
type tab struct {
	ctx context.Context

	mu    sync.Mutex // guards wrong and loads
	wrong []string
	loads int
}

// newBrowser starts a headless Chromium for the length of the test, which reaches this
// host only.
func newBrowser(t *testing.T) chromium {
	t.Helper()
	needed(t, browser)
	path := ""
	for _, name := range browsers {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Fatal("there is no Chromium or Chrome: run `make browser`, or leave these tests out by SKIP_SERVERS=browser")
	}
	data := t.TempDir()
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path),
		chromedp.UserDataDir(data),
		chromedp.NoSandbox,
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
	)...)
	ctx, cancelBrowser := chromedp.NewContext(ctx)
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Error(err)
		}
		cancelBrowser()
		cancel()
		// Its processes write there to the last.
		waitFor(t, "the browser's folder to be removed", func() bool { return os.RemoveAll(data) == nil })
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return chromium{ctx}
}

// tab opens a tab, and takes note of dialogs, errors, violations of the page's policy,
// and requests to elsewhere than site.
func (c chromium) tab(t *testing.T, site string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(c.ctx)
	ctx, cancelTime := context.WithTimeout(ctx, time.Minute)
	t.Cleanup(func() {
		cancelTime()
		cancel()
	})
	b := &tab{ctx: ctx}
	var dialogs sync.WaitGroup
	t.Cleanup(dialogs.Wait)
	err := chromedp.Listen(ctx, func(ev any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch ev := ev.(type) {
		case *page.EventJavascriptDialogOpening:
			b.wrong = append(b.wrong, "dialog: "+ev.Message)
			dialogs.Go(func() {
				_, _ = chromedp.Call(ctx, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{Accept: true})
			})
		case *runtime.EventConsoleAPICalled:
			b.wrong = append(b.wrong, fmt.Sprintf("console: %s", ev.Type))
		case *runtime.EventExceptionThrown:
			b.wrong = append(b.wrong, "exception: "+ev.ExceptionDetails.Text)
		case *log.EventEntryAdded:
			b.wrong = append(b.wrong, fmt.Sprintf("log: %s %s", ev.Entry.Level, ev.Entry.Text))
		case *network.EventRequestWillBeSent:
			if !strings.HasPrefix(ev.Request.URL, site) && ev.Request.URL != "data:," {
				b.wrong = append(b.wrong, "request: "+ev.Request.URL)
			}
		case *page.EventLoadEventFired:
			b.loads++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	command(t, b, network.Enable, network.EnableParams{})
	command(t, b, log.Enable, cdp.Empty{})
	return b
}

func (b *tab) run(t *testing.T, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		t.Fatal(err)
	}
}

// command is one of the protocol of the browser.
func command[P, R any](t *testing.T, b *tab, c cdp.Command[P, R], params P) {
	t.Helper()
	if _, err := chromedp.Call(b.ctx, c, params); err != nil {
		t.Fatal(err)
	}
}

// eval is what an expression is in the page of b.
func eval[T any](t *testing.T, b *tab, expression string) T {
	t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// texts are those of the elements that match, as they are seen.
func (b *tab) texts(t *testing.T, selector string) []string {
	t.Helper()
	return eval[[]string](t, b, fmt.Sprintf(`[...document.querySelectorAll(%q)].map(e => e.innerText)`, selector))
}

func (b *tab) problems() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.wrong)
}

func (b *tab) loaded() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.loads
}

// TestBrowserPage looks at the page of lockhttp on locks of real servers.
func TestBrowserPage(t *testing.T) {
	b := newBrowser(t)
	onEach(t, func(t *testing.T, s *testdb.Server) {
		testBrowserPage(t, b, mysqlnamed.New(), func() *sql.DB { return open(t, s) })
	})
}

func TestBrowserPagePG(t *testing.T) {
	s := postgres(t)
	db := pgDatabase(t, s)
	testBrowserPage(t, newBrowser(t), pgadvisory.New(), func() *sql.DB { return sameDatabase(t, s, db) })
}

func testBrowserPage(t *testing.T, c chromium, backend sqllock.Backend, open func() *sql.DB) {
	hostile := lockName("") + `<img src=x onerror=alert(1)>"'&`
	invoices, long := lockName("invoices"), lockName(strings.Repeat("long", 60))
	p, other := pool(t, open(), backend), pool(t, open(), backend)
	site := httptest.NewServer(lockhttp.Handler(map[string]*sqllock.Pool{"shop": p, "archive": other}))
	t.Cleanup(site.Close)
	lock := func(p *sqllock.Pool, name string) *sqllock.Lock {
		l, err := p.Lock(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	theirs, job, wide := lock(other, hostile), lock(p, invoices), lock(p, long)
	var wg sync.WaitGroup
	for _, name := range []string{hostile, invoices} {
		wg.Go(func() {
			l, err := p.Lock(t.Context(), name)
			if err == nil {
				err = l.Release(t.Context())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(t, "two to wait", func() bool { return p.Stats().Waits == 2 })
	waitFor(t, "one to wait for another process", func() bool {
		for _, w := range p.Snapshot().Waiting {
			if w.Name == hostile {
				return w.Holder == "another process"
			}
		}
		return false
	})

	b := c.tab(t, site.URL)
	b.run(t, chromedp.Navigate(site.URL+"/?refresh=1"))
	held, waiting := "table.held td.name", "table.waiting td.name"
	wants := func(selector string, want ...string) {
		t.Helper()
		got := b.texts(t, selector)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", selector, got, want)
		}
	}
	wants("h2", "archive 1 held, 0 waiting, 1 connections", fmt.Sprintf("shop 2 held, 2 waiting, %d connections", p.Stats().Conns))
	wants(held, hostile, invoices, long)
	wants(waiting, hostile, invoices)
	if by := b.texts(t, "table.waiting td:nth-child(3)"); len(by) != 2 || !strings.Contains(by[0], "integration.testBrowserPage.func") {
		t.Errorf("by %q", by)
	}

	// It follows what happens without being touched.
	loads := b.loaded()
	if err := job.Release(t.Context()); err != nil {
		t.Error(err)
	}
	waitFor(t, "the page to show that the lock was released", func() bool {
		return slices.Equal(b.texts(t, waiting), []string{hostile}) && !slices.Contains(b.texts(t, held), invoices)
	})
	if b.loaded() == loads {
		t.Error("the page has not been loaded again")
	}

	// It can be read on any screen, and in the dark.
	for _, screen := range []int64{1400, 1100, 800, 360} {
		b.run(t, chromedp.EmulateViewport(screen, 740, chromedp.EmulateMobile), chromedp.Navigate(site.URL))
		if width := eval[float64](t, b, "document.documentElement.scrollWidth"); width > float64(screen) {
			t.Errorf("the page is %v wide on a screen of %d", width, screen)
		}
		for column, least := range map[string]float64{"name": 150, "state": 75} { // not a character a line
			if width := eval[float64](t, b, `Math.min(...[...document.querySelectorAll("td.`+column+`")].map(e => e.clientWidth))`); width < least {
				t.Errorf("a %s has a width of %v on a screen of %d", column, width, screen)
			}
		}
	}
	color := "Number(getComputedStyle(document.body).color.match(/\\d+/)[0])" // red of the text
	if red := eval[float64](t, b, color); red > 100 {
		t.Errorf("by day the text is as bright as %v", red)
	}
	command(t, b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}})
	if red := eval[float64](t, b, color); red < 200 {
		t.Errorf("in the dark the text is as bright as %v", red)
	}
	b.run(t, chromedp.EmulateReset())

	// The server is asked who it is that has the lock.
	holder, err := other.Holder(t.Context(), hostile)
	if err != nil {
		t.Fatal(err)
	}
	asked := func() {
		t.Helper()
		if is := b.texts(t, "#holder h2 .name"); len(is) != 1 || is[0] != hostile {
			t.Errorf("asked for %q", is)
		}
		if is := b.texts(t, "#holder dd"); len(is) == 0 || is[0] != fmt.Sprint(holder.Session) {
			t.Errorf("held by %q, want session %d", is, holder.Session)
		}
	}
	b.run(t, chromedp.Click(chromedp.CSS("table.waiting a")), chromedp.WaitVisible(chromedp.CSS("#holder dd")))
	asked()
	b.run(t, chromedp.Navigate(site.URL), chromedp.SetValue(chromedp.CSS("#ask"), hostile), chromedp.Click(chromedp.CSS("form button")), chromedp.WaitVisible(chromedp.CSS("#holder dd")))
	asked()

	for _, l := range []*sqllock.Lock{theirs, wide} {
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if wrong := b.problems(); len(wrong) != 0 {
		t.Errorf("the browser complains: %q", wrong)
	}
}

// TestBrowserTells is the control: a page that does not escape a name runs its script, or
// breaks the policy, and the tests of this file would see it.
func TestBrowserTells(t *testing.T) {
	const hostile = `<!DOCTYPE html><link rel="icon" href="data:,"><p>done</p><img src=x onerror=alert(1)>`
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/x" {
			return
		}
		if r.URL.Path == "/policy" {
			rec := httptest.NewRecorder()
			db := &sql.DB{}
			lockhttp.Handler(map[string]*sqllock.Pool{"none": sqllock.NewPool(db, sqllock.New(mysqlnamed.New()))}).ServeHTTP(rec, httptest.NewRequestWithContext(r.Context(), http.MethodGet, "/", http.NoBody))
			w.Header().Set("Content-Security-Policy", rec.Header().Get("Content-Security-Policy"))
		}
		_, _ = fmt.Fprint(w, hostile)
	}))
	t.Cleanup(site.Close)
	b := newBrowser(t)
	for path, want := range map[string]string{"/": "dialog: 1", "/policy": "log: error "} {
		tab := b.tab(t, site.URL)
		tab.run(t, chromedp.Navigate(site.URL+path))
		waitFor(t, "a complaint about "+path, func() bool {
			return slices.ContainsFunc(tab.problems(), func(p string) bool { return strings.HasPrefix(p, want) })
		})
		if wrong := tab.problems(); path == "/policy" && slices.Contains(wrong, "dialog: 1") {
			t.Errorf("the policy allows a script: %q", wrong)
		}
	}
}
