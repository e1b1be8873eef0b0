package userlock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

// atOnce is how many locks one statement is about that only looks at them, or frees
// them.
const atOnce = 100

// Watch asks over q which of grants are held, by statements that query makes for some
// of them at a time: with a column for each, and before these one for each of more.
func Watch(ctx context.Context, q sqllock.Querier, grants []sqllock.Grant, query func([]sqllock.Grant) string, more ...sql.Scanner) ([]bool, error) {
	held := make([]bool, 0, len(grants))
	for some := range slices.Chunk(grants, atOnce) {
		answers := make([]sql.NullBool, len(some))
		if err := AskOver(ctx, q, query(some), append(slices.Clone(more), scanners(answers)...)...); err != nil {
			return nil, err
		}
		for _, a := range answers {
			held = append(held, a.Bool)
		}
	}
	return held, nil
}

// LetGo frees lock if the session has been granted it by a statement that was
// interrupted or is no longer wanted, and returns err, unless the session has
// to be given up for it. The session did not hold it before that statement.
func LetGo(ctx context.Context, s *session.Session, lock string, err error) error {
	return LetGoAll(ctx, s, []string{lock}, err)
}

// LetGoAll is LetGo for several locks.
func LetGoAll(ctx context.Context, s *session.Session, locks []string, err error) error {
	for some := range slices.Chunk(locks, atOnce) {
		freed := scanners(make([]sql.NullInt64, len(some)))
		failed := Ask(ctx, s, Release(some...), freed...)
		if errors.Is(failed, sqllock.ErrInterrupted) {
			failed = Ask(ctx, s, Release(some...), freed...)
		}
		if failed != nil {
			return fmt.Errorf("%w: it may hold the lock after an interrupted wait: %w", sqllock.ErrSessionGone, failed)
		}
	}
	return err
}

// scanners are pointers to all of values.
func scanners[T any, P interface {
	*T
	sql.Scanner
}](values []T) []sql.Scanner {
	dest := make([]sql.Scanner, len(values))
	for i := range values {
		dest[i] = P(&values[i])
	}
	return dest
}
