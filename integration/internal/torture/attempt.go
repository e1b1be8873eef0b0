package torture

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// attempt is a booking.
type attempt struct {
	w         *worker
	shard     int
	id        string
	runs      int // of work
	token     int64
	findToken string // the query for it, where only the session knows
	session   int64  // that the work is done on, if somebody has asked
}

func (w *worker) newAttempt(shard int) *attempt {
	w.attempts++
	w.current = &attempt{w: w, shard: shard, id: fmt.Sprintf("%s-%d", w.Process, w.attempts)}
	return w.current
}

// tokenOf is the query for the token of a lock in a table of leases. The function of
// txguard.Do does not get the lock.
func (w *worker) tokenOf(table string) string {
	return w.bind("SELECT token FROM " + table + " WHERE name=? AND connection_id=" + w.self())
}

// errNoMoney is a reason of the application not to commit.
var errNoMoney = errors.New("there is no money")

// work books, as people do who have the lock: it reads, thinks, and writes what
// it has computed.
func (a *attempt) work(ctx context.Context, tx *sql.Tx) error {
	a.runs++
	r, err := a.read(ctx, tx)
	if err != nil {
		return err
	}
	if err := a.think(ctx, tx); err != nil {
		return err
	}
	if err := a.write(ctx, tx, r); err != nil {
		return err
	}
	if a.w.one(50) {
		return errNoMoney
	}
	return nil
}

// read returns the row of the ledger that is to be written.
func (a *attempt) read(ctx context.Context, tx *sql.Tx) (r row, err error) {
	rng := a.w.rng
	r = row{shard: a.shard, attempt: fmt.Sprintf("%s/%d", a.id, a.runs), token: a.token, b: -1}
	i := rng.IntN(accounts)
	r.a = account(a.shard, i)
	amount := 1 + rng.Int64N(100)
	if r.hasB = a.w.one(2); r.hasB {
		r.b = account(a.shard, (i+1+rng.IntN(accounts-1))%accounts)
	}
	if a.findToken != "" {
		key, err := sqllock.Key(a.w.Namespace, name(a.shard))
		if err != nil {
			return r, err
		}
		if err := tx.QueryRowContext(ctx, a.findToken, key).Scan(&r.token); err != nil {
			return r, fmt.Errorf("token: %w", err)
		}
	}
	if err := tx.QueryRowContext(ctx, a.w.bind("SELECT n FROM shards WHERE shard=?"), r.shard).Scan(&r.n); err != nil {
		return r, err
	}
	r.n++
	balance := a.w.bind("SELECT balance FROM accounts WHERE id=?")
	if err := tx.QueryRowContext(ctx, balance, r.a).Scan(&r.aWas); err != nil {
		return r, err
	}
	r.aIs = r.aWas + amount
	if r.hasB {
		if err := tx.QueryRowContext(ctx, balance, r.b).Scan(&r.bWas); err != nil {
			return r, err
		}
		r.bIs = r.bWas - amount
	}
	return r, nil
}

// think takes a moment, at which the process can be stopped.
func (a *attempt) think(ctx context.Context, tx *sql.Tx) error {
	if a.w.in.pending() {
		if err := tx.QueryRowContext(ctx, "SELECT "+a.w.self()).Scan(&a.session); err != nil {
			return err
		}
	}
	a.w.reach(atThink)
	if a.w.one(10) {
		a.w.pause(3 * time.Millisecond)
	}
	return nil
}

func (a *attempt) write(ctx context.Context, tx *sql.Tx, r row) error {
	exec := func(query string, args ...any) error {
		_, err := tx.ExecContext(ctx, a.w.bind(query), args...)
		return err
	}
	if err := exec("UPDATE accounts SET balance=? WHERE id=?", r.aIs, r.a); err != nil {
		return err
	}
	if r.hasB {
		if err := exec("UPDATE accounts SET balance=? WHERE id=?", r.bIs, r.b); err != nil {
			return err
		}
	}
	if err := exec("UPDATE shards SET n=? WHERE shard=?", r.n, r.shard); err != nil {
		return err
	}
	return exec("INSERT INTO ledger (shard,n,token,attempt,a,a_before,a_after,b,b_before,b_after) VALUES (?,?,?,?,?,?,?,?,?,?)",
		r.shard, r.n, r.token, r.attempt, r.a, r.aWas, r.aIs, r.b, r.bWas, r.bIs)
}
