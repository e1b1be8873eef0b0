package testdb

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// OpenPostgres opens a pool on dsn after change, if there is one, has changed it.
func OpenPostgres(dsn string, change func(*pgx.ConnConfig)) (*sql.DB, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	if change != nil {
		change(cfg)
	}
	return stdlib.OpenDB(*cfg), nil
}

func pingPostgres(ctx context.Context, dsn string) error {
	db, err := OpenPostgres(dsn, nil)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // only a ping
	return db.PingContext(ctx)
}

func postgresDSN(port int, database string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", port, url.PathEscape(database))
}

func postgresOptions(data string, port int) []string {
	return append(
		postgresFast("-D", data, "-p", strconv.Itoa(port)), "-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories=", // the folder's path may be too long for the one of a socket
	)
}

// postgresFast adds what has it start fast and write little. Of an option that
// is given twice the last one counts.
func postgresFast(options ...string) []string {
	return append(options, "-c", "fsync=off", "-c", "max_connections=500", "-c", "shared_buffers=16MB", "-c", "max_wal_size=1GB")
}

// postgresDocker is what follows `docker run`.
func postgresDocker(port int, image string) []string {
	return postgresFast(
		"-p", "127.0.0.1:"+strconv.Itoa(port)+":5432",
		"-e", "POSTGRES_HOST_AUTH_METHOD=trust", "-e", "POSTGRES_INITDB_ARGS=--locale=C -E UTF8", image,
	)
}

// stopPostgres has the server end all its processes at once, after five seconds
// with kill -9. The same signal to itself alone would leave them behind.
const stopPostgres = `pid=$(cat "$dir/server.pid"); kill -QUIT "$pid" 2>/dev/null; kill -CONT "$pid" 2>/dev/null`
