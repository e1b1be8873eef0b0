package testdb

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
)

// BouncerPool is how many sessions on the server a Bouncer has for a database.
const BouncerPool = 4

// Bouncer is a PgBouncer in front of a Postgres.
type Bouncer struct {
	// DSN is as that of the server. It takes any user, connects as the one of the
	// server's DSN, and passes the database on; the one called pgbouncer is its
	// console (SHOW POOLS), which has the simple protocol only.
	DSN string

	*instance
}

const bouncerConfig = `[databases]
* = host=%s port=%d user=%s%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = %s
default_pool_size = %d
max_client_conn = 500
ignore_startup_parameters = extra_float_digits
server_tls_sslmode = prefer
server_login_retry = 0.1
`

// StartBouncer starts a PgBouncer of the mode session, transaction or statement,
// which lives no longer than the process that started it. The server may be that
// of the environment.
func StartBouncer(ctx context.Context, s *Server, mode string) (*Bouncer, error) {
	home, err := installed(PgBouncer)
	if err != nil {
		return nil, err
	}
	server, err := pgx.ParseConfig(s.DSN)
	if err != nil {
		return nil, err
	}
	b := &Bouncer{}
	ping := func(ctx context.Context) error { return pingPostgres(ctx, b.DSN) }
	b.instance, err = launch(ctx, string(PgBouncer), ping, func(dir string, port int) (command []string, stop string, err error) {
		b.DSN = postgresDSN(port, server.Database)
		password := ""
		if server.Password != "" {
			password = " password=" + quoted(server.Password)
		}
		config := filepath.Join(dir, "pgbouncer.ini")
		return []string{filepath.Join(home, "server"), config}, stopAtOnce, os.WriteFile(config, fmt.Appendf(
			nil, bouncerConfig, quoted(server.Host), server.Port, quoted(server.User), password, port, mode, BouncerPool,
		), 0o600)
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

func quoted(value string) string { return "'" + strings.ReplaceAll(value, "'", "''") + "'" }

// Stop ends it at once, and returns when it is gone.
func (b *Bouncer) Stop() error { return b.end() }
