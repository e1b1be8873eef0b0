package memory

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
)

// question is answered with the server's name and the session's id. Backends ask it
// over what they are given, since a *sql.DB and a *sql.Tx do not show their session.
const question = "memory: which server and which session is this?"

var errRowsOpen = errors.New("memory: rows of a query are open on the connection")

// connector makes the sessions of one pool.
type connector struct {
	server  *Server
	process string
}

// Connect begins a session.
func (k *connector) Connect(ctx context.Context) (driver.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := k.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return nil, s.failure
	}
	s.sessions++
	c := &client{id: s.sessions, process: k.process, held: make(map[*holding]struct{})}
	s.clients[c.id] = c
	return &conn{server: s, client: c}, nil
}

// Driver returns what database/sql wants to have, and needs for nothing.
func (k *connector) Driver() driver.Driver { return nameless{} }

// nameless has no data source names.
type nameless struct{}

func (nameless) Open(string) (driver.Conn, error) {
	return nil, errors.New("memory: connections are made by Server.DB")
}

// conn is the client's side of a session. database/sql calls one method of it, or of
// its transaction or rows, at a time.
type conn struct {
	server *Server
	client *client
	rows   bool // of a query are open: as with the driver for MySQL, nothing else can run then
}

var (
	_ driver.ConnBeginTx     = (*conn)(nil)
	_ driver.ExecerContext   = (*conn)(nil)
	_ driver.Pinger          = (*conn)(nil)
	_ driver.QueryerContext  = (*conn)(nil)
	_ driver.SessionResetter = (*conn)(nil)
	_ driver.Validator       = (*conn)(nil)
)

// statement is what all statements have in common.
func (c *conn) statement(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.usable()
}

// usable returns why a statement fails, nil if it does not.
func (c *conn) usable() error {
	runtime.Gosched() // others get their turn, as during a round trip
	if c.rows {
		return errRowsOpen
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if c.server.failure != nil {
		return c.server.failure
	}
	if c.client.gone {
		return errEnded
	}
	return nil
}

func (c *conn) gone() bool {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	return c.client.gone
}

// Close ends the session.
func (c *conn) Close() error {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.server.end(c.client)
	return nil
}

// Ping is a statement that does nothing.
func (c *conn) Ping(ctx context.Context) error { return c.statement(ctx) }

// IsValid tells the pool not to keep a session that has ended.
func (c *conn) IsValid() bool { return !c.rows && !c.gone() }

// ResetSession tells the pool that a session has ended while it was idle.
func (c *conn) ResetSession(context.Context) error {
	if c.gone() {
		return driver.ErrBadConn
	}
	return nil
}

// Prepare refuses.
func (c *conn) Prepare(query string) (driver.Stmt, error) { return nil, errNoDatabase(query) }

// ExecContext refuses.
func (c *conn) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	return nil, errNoDatabase(query)
}

func errNoDatabase(query string) error {
	return fmt.Errorf("memory: this is no database, it has locks only: %.60q can't be run", query)
}

// Begin is there because an older database/sql wanted it.
func (c *conn) Begin() (driver.Tx, error) { return nil, errors.New("memory: use BeginTx") }

// BeginTx begins a transaction in which nothing can be done.
func (c *conn) BeginTx(ctx context.Context, _ driver.TxOptions) (driver.Tx, error) {
	if err := c.statement(ctx); err != nil {
		return nil, err
	}
	return &tx{c}, nil
}

type tx struct{ conn *conn }

// Commit fails if the session has ended, as every statement does.
func (t *tx) Commit() error { return t.conn.usable() }

// Rollback is like Commit.
func (t *tx) Rollback() error { return t.conn.usable() }

// QueryContext answers the question, and a SELECT of whole numbers.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.statement(ctx); err != nil {
		return nil, err
	}
	answer := [][]driver.Value{{c.server.name, c.client.id}}
	if query != question {
		if answer = numbers(query); answer == nil || len(args) > 0 {
			return nil, errNoDatabase(query)
		}
	}
	c.rows = true
	return &rows{c, answer}, nil
}

// numbers is the answer to "SELECT 1", with "UNION ALL SELECT 2" and so on after it,
// and nil for anything else.
func numbers(query string) (answer [][]driver.Value) {
	for part := range strings.SplitSeq(strings.ToUpper(query), " UNION ALL ") {
		number, ok := strings.CutPrefix(part, "SELECT ")
		n, err := strconv.ParseInt(number, 10, 64)
		if !ok || err != nil {
			return nil
		}
		answer = append(answer, []driver.Value{n})
	}
	return answer
}

type rows struct {
	conn *conn
	left [][]driver.Value
}

// Columns has as many names as there are values in a row.
func (r *rows) Columns() []string {
	if len(r.left) == 0 {
		return nil
	}
	return []string{"a", "b"}[:len(r.left[0])]
}

// Close lets the connection be used again.
func (r *rows) Close() error {
	r.conn.rows = false
	return nil
}

// Next fails if the session has ended.
func (r *rows) Next(dest []driver.Value) error {
	switch {
	case r.conn.gone():
		return errEnded
	case len(r.left) == 0:
		return io.EOF
	}
	copy(dest, r.left[0])
	r.left = r.left[1:]
	return nil
}
