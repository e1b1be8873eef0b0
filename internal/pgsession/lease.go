package pgsession

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// RowTime is how long a statement of Apart or Claim waits for a row or a table that
// somebody else has locked: less than AnswerTime, whose end costs the session.
const RowTime = 4 * time.Second

// apart makes the implicit transaction of a message what ours have to be, whatever the
// defaults of the session. Neither statement warns inside a message of several.
const apart = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED,READ WRITE;"

func rowLimit() string { return "SET LOCAL lock_timeout=" + milliseconds(RowTime) + ";" }

// Apart is Ask for statements that read and write a table in a transaction of their own:
// READ COMMITTED and READ WRITE whatever the defaults of the session, and with RowTime as
// the limit to a wait for a row (LockTimeout). The session must be Idle.
func (s *Session) Apart(query string, dest ...sql.Scanner) error {
	if s.Tx() != Idle {
		return fmt.Errorf("%w: its statement would join that", sqllock.ErrInTransaction)
	}
	return s.Ask(apart+rowLimit()+query, dest...)
}

// Claim runs lock, a statement that waits for an advisory lock for at most d, as Wait does,
// and then claim as Apart does, all of it in one message and one transaction. It scans the
// last row of claim. The session must be Idle. After an error the lock may be held all the
// same; what claim has written is rolled back, unless the session is gone.
func (s *Session) Claim(ctx context.Context, d time.Duration, lock, claim string, dest ...sql.Scanner) error {
	if s.Tx() != Idle {
		return fmt.Errorf("%w: its statement would join that", sqllock.ErrInTransaction)
	}
	return s.cancellable(ctx, apart+s.limits(d)+lock+";"+rowLimit()+claim, d+RowTime+AnswerTime, dest)
}
