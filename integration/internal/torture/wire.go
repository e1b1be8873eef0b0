package torture

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// wire watches for the last statements of transactions on the connections of a
// process. All of them are of the attempt that is under way. Only from here can it
// be seen that the answer to one was lost where txguard has found out by itself what
// became of it.
type wire struct {
	dialect
	addr  string                               // of the proxy, whatever the driver asks for
	reach func(point)                          // waits, if that was ordered
	cut   func() (late time.Duration, ok bool) // says how late a COMMIT whose answer never comes is to be
	lost  atomic.Bool
}

func (w *wire) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, "tcp", w.addr)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c, nil
	}
	return &wireConn{TCPConn: tcp, wire: w}, nil
}

// wireConn is a connection. The driver waits for the answer to a statement before
// it sends another one.
type wireConn struct {
	*net.TCPConn // whose SyscallConn the driver looks for
	wire         *wire
	waits        atomic.Bool // for the answer to COMMIT
	cut          atomic.Bool
}

func (c *wireConn) Write(b []byte) (int, error) {
	if c.cut.Load() {
		return len(b), nil // what a driver says when it closes is lost
	}
	switch c.wire.point(b) {
	case atFence:
		c.wire.reach(atFence)
	case atCommit:
		c.wire.reach(atCommit)
		c.waits.Store(true)
		if late, ok := c.wire.cut(); ok {
			c.send(bytes.Clone(b), late)
			return len(b), nil
		}
	}
	return c.TCPConn.Write(b)
}

// send has b be the last that the server gets, when it is late. For the driver the
// connection is broken.
func (c *wireConn) send(b []byte, late time.Duration) {
	c.cut.Store(true)
	time.AfterFunc(late, func() {
		_, _ = c.TCPConn.Write(b) // or never
		_ = c.TCPConn.Close()
	})
}

func (c *wireConn) Read(b []byte) (int, error) {
	if c.cut.Load() {
		c.wire.lost.Store(true)
		return 0, io.EOF
	}
	n, err := c.TCPConn.Read(b)
	if c.cut.Load() { // meanwhile: pgx may read while it writes
		c.wire.lost.Store(true)
		return 0, io.EOF
	}
	if c.waits.Swap(false) && (err != nil || c.wire.undecided(b[:n])) {
		c.wire.lost.Store(true)
	}
	return n, err
}

func (c *wireConn) Close() error {
	if c.cut.Load() {
		return nil // as soon as all was sent
	}
	if c.waits.Swap(false) {
		c.wire.lost.Store(true)
	}
	return c.TCPConn.Close()
}
