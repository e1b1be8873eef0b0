// Package inprocess runs a MySQL server inside this process, for the demo on a
// machine without a database. It is github.com/dolthub/go-mysql-server, whose
// user-level locks do what mysqlnamed needs; not a server to test locks on.
package inprocess

import (
	"context"
	"fmt"
	"io"
	"net"

	sqle "github.com/dolthub/go-mysql-server"
	"github.com/dolthub/go-mysql-server/memory"
	"github.com/dolthub/go-mysql-server/server"
	"github.com/dolthub/go-mysql-server/sql"
	"github.com/sirupsen/logrus"
)

// Database is the name of the empty database that the server starts with.
const Database = "demo"

// Start starts a server on a free port of the loopback interface, and returns
// its DSN and a function that stops it.
func Start(ctx context.Context) (dsn string, stop func() error, err error) {
	logrus.SetOutput(io.Discard) // the demo kills its clients, which the server would remark upon
	provider := memory.NewDBProvider(memory.NewDatabase(Database))
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	config := server.Config{Listener: listener, Protocol: "tcp", Address: listener.Addr().String()}
	s, err := server.NewServer(config, sqle.NewDefault(provider), sql.NewContext, memory.NewSessionBuilder(provider), nil)
	if err != nil {
		return "", nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Start() }()
	stop = func() error {
		if err := s.Close(); err != nil {
			return err
		}
		return <-ended
	}
	return fmt.Sprintf("root@tcp(%s)/%s", listener.Addr(), Database), stop, nil
}
