package session

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// ErrNoSpare is that a pool had no connection to spare.
var ErrNoSpare = errors.New("the pool of WithPool had no connection to spare")

// Spare takes a connection of the pool that a backend of package pkg was lent, and waits for
// one for as long as patience and ctx allow.
func Spare(ctx context.Context, pkg string, pool *sql.DB, patience time.Duration) (*sql.Conn, error) {
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := pool.Conn(wait)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%w: %w", ErrNoSpare, err)
	case wait.Err() != nil:
		return nil, fmt.Errorf("%w for %v: %d of %d (MaxOpenConns) were in use",
			ErrNoSpare, patience, pool.Stats().InUse, pool.Stats().MaxOpenConnections)
	}
	return nil, fmt.Errorf("no connection from the pool of %s.WithPool: %w", pkg, err)
}
