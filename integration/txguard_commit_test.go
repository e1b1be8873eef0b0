package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/txguard"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

// TestGuardKillDuringCommit has the answers to 1,000 COMMITs lost by a KILL, on each
// server, and compares what Run says became of them with what did.
func TestGuardKillDuringCommit(t *testing.T) {
	const wanted = 1000
	for _, kind := range testdb.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			k := newCommitKiller(t, server(t, kind))
			for k.settledCommitted+k.settledRolledBack < wanted {
				k.round()
			}
			t.Logf("%d rounds: %d answers to COMMIT were lost, of which %d were found to be committed and %d not; %d COMMITs were answered, %d not sent",
				k.rounds, wanted, k.settledCommitted, k.settledRolledBack, k.answered, k.refused)
			if k.settledCommitted == 0 || k.settledRolledBack == 0 {
				t.Error("the KILLs came all before, or all after the commit, so this shows nothing")
			}
		})
	}
}

type commitKiller struct {
	t      *testing.T
	db     *sql.DB
	fence  *txguard.Fence
	locker *sqllock.Locker
	window time.Duration // the KILL comes at a random moment within it

	rounds, settledCommitted, settledRolledBack, answered, refused int
}

func newCommitKiller(t *testing.T, s *testdb.Server) *commitKiller {
	t.Helper()
	db := schema(t, s)
	fenceTable(t, db)
	do(t, db, "DELETE FROM work")
	return &commitKiller{t: t, db: db, fence: txguard.NewFence(db), locker: sqllock.New(mysqlnamed.New()), window: time.Millisecond}
}

func (k *commitKiller) round() {
	k.t.Helper()
	k.rounds++
	c, err := k.db.Conn(k.t.Context())
	if err != nil {
		k.t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the session has been killed
	l := acquire(k.t, k.locker, c, "commit killer")
	session := l.Grant().Session
	killed := make(chan error, 1)
	err = txguard.Run(k.t.Context(), l, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO work VALUES (%d,0)", k.rounds))
		go func() {
			for end := time.Now().Add(rand.N(k.window)); time.Now().Before(end); {
			}
			killed <- mysqlKill(k.t.Context(), k.db, session)
		}()
		return err
	}, txguard.WithEvidence(k.fence))
	if err := <-killed; err != nil {
		k.t.Fatal(err)
	}
	k.judge(l, err)
}

// judge compares with a read that waits for whoever has written the row.
func (k *commitKiller) judge(l *sqllock.Lock, err error) {
	k.t.Helper()
	committed := ask[int](k.t, k.db, fmt.Sprintf("SELECT COUNT(*) FROM work WHERE id=%d FOR UPDATE", k.rounds)) == 1
	if committed != (err == nil) || err != nil && !errors.Is(err, txguard.ErrRolledBack) {
		k.t.Fatalf("round %d: committed: %v, and Run says %v", k.rounds, committed, err)
	}
	lost := l.Err() != nil // which Run has found out, if it was not told by COMMIT
	switch {
	case err == nil && lost:
		k.settledCommitted++
	case err == nil:
		k.answered++
		k.window = max(k.window*99/100, 50*time.Microsecond)
		_ = l.Release(k.t.Context()) // its session has been killed
	case errors.Is(err, mysql.ErrInvalidConn) && commitSent(err):
		k.settledRolledBack++
	default:
		k.refused++
		k.window = k.window * 101 / 100
	}
}

// commitSent tells by the text of an error whether it is that of COMMIT.
func commitSent(err error) bool { return strings.Contains(err.Error(), "COMMIT: ") }
