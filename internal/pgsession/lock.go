package pgsession

import (
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/sqllock/go-sqllock/sqllock"
)

// Lock is an advisory lock of a session. Who holds it has two references on it, so that
// to ask whether it does takes no look into pg_locks. Its methods make expressions, and
// Wait and WaitOne statements.
type Lock struct {
	Number string // an expression, as Number makes it of a key
	Shared bool
}

// Number is the 64 bits of a lock on the server.
func Number(key string) string { return "hashtextextended(" + Text(key) + ",0)" }

func (l Lock) call(function string) string { return function + l.Suffix() + "(" + l.Number + ")" }

func (l Lock) unlock() string { return l.call("pg_advisory_unlock") }

// Suffix is that of the names of the server's functions.
func (l Lock) Suffix() string {
	if l.Shared {
		return "_shared"
	}
	return ""
}

// Mode is that of pg_locks.
func (l Lock) Mode() string {
	if l.Shared {
		return "ShareLock"
	}
	return "ExclusiveLock"
}

// Both is what a condition and the same again come to, evaluated in that order: CASE
// evaluates no branch that it does not take.
func Both(first, second string) string {
	return "CASE WHEN " + first + " THEN " + second + " ELSE false END"
}

// Try takes one reference, if the lock is free, and Take both.
func (l Lock) Try() string { return l.call("pg_try_advisory_lock") }

// Take takes both references, if the lock is free.
func (l Lock) Take() string { return Both(l.Try(), l.Try()) }

// WaitOne waits for the first reference.
func (l Lock) WaitOne() string { return "SELECT " + l.call("pg_advisory_lock") }

// Wait waits for the first reference, and then takes the second one, in one statement, so
// that nothing is left to be planned when the wait is over.
func (l Lock) Wait() string {
	return "SELECT CASE WHEN " + l.call("pg_advisory_lock") + " IS NULL THEN false ELSE " + l.Try() + " END"
}

// Held gives back one reference and takes it again. The other one keeps the lock
// meanwhile; a session without the lock has none to give back. pg_locks would take some
// two hundred microseconds.
func (l Lock) Held() string { return Both(l.unlock(), l.Try()) }

// Freed gives back both references, and is how many there were.
func (l Lock) Freed() string {
	return "CASE WHEN " + l.unlock() + " THEN CASE WHEN " + l.unlock() + " THEN 2 ELSE 1 END ELSE 0 END"
}

// Here is the condition that a row l of pg_locks is a lock of one number in this database,
// which somebody has. Those of two numbers have another objsubid. To look into pg_database
// would take a place in the lock table, which may be full.
const Here = "l.locktype='advisory' AND l.objsubid=1 AND l.granted AND l.database=(SELECT datid FROM pg_stat_get_activity(pg_backend_pid()))"

// Halves are the columns of pg_locks in which the server shows a number.
func Halves(number string) (classid, objid string) {
	return "(((" + number + ")>>32)&4294967295)::oid", "((" + number + ")&4294967295)::oid"
}

// IsNumber is the condition that a row l of pg_locks is of a number.
func IsNumber(number string) string {
	classid, objid := Halves(number)
	return "l.classid=" + classid + " AND l.objid=" + objid
}

// AnyHeld is whether the session has one of keys, in whatever mode.
func AnyHeld(keys ...string) string {
	is := make([]string, len(keys))
	for i, key := range keys {
		is[i] = IsNumber(Number(key))
	}
	return "EXISTS (SELECT 1 FROM pg_locks l WHERE " + Here + " AND l.pid=pg_backend_pid() AND (" + strings.Join(is, " OR ") + "))"
}

// LetGo frees what a statement may have left of a lock: a session's survives an error, and
// the rollback. It is a statement.
func (l Lock) LetGo() string {
	// To ask before that keeps the server from logging a warning.
	return "SELECT " + l.Freed() + " WHERE EXISTS (SELECT 1 FROM pg_locks l WHERE " + Here + " AND l.mode='" + l.Mode() +
		"' AND l.pid=pg_backend_pid() AND " + IsNumber(l.Number) + ")"
}

// LetGo runs l.LetGo. A cancel request that comes late ends this statement, and not the
// caller's next one. An error is the end of the session.
func (s *Session) LetGo(l Lock) error {
	if s.Tx() == Aborted {
		return fmt.Errorf("%w: it may have the lock: %w", sqllock.ErrSessionGone, ErrAborted)
	}
	err := s.Ask(l.LetGo())
	if errors.Is(err, sqllock.ErrInterrupted) && s.Tx() != Aborted {
		err = s.Ask(l.LetGo())
	}
	if err != nil && !errors.Is(err, sqllock.ErrSessionGone) {
		return fmt.Errorf("%w: it may have the lock after a statement that failed: %w", sqllock.ErrSessionGone, err)
	}
	return err
}

// Unheld returns ErrHeld if the session has been granted a lock of that name, and still
// has it: an acquisition would count once more. A lock of another name is another lock,
// even if the two have one number.
func (s *Session) Unheld(key string) error {
	held := s.Known().Held
	if !held[key] {
		return nil
	}
	var still sql.NullBool
	if err := s.Ask("SELECT "+AnyHeld(key), &still); err != nil {
		return err
	}
	if still.Bool {
		return sqllock.ErrHeld
	}
	delete(held, key)
	return nil
}

// Numbered makes n answers of the numbers, counted from 0, of those that are true.
func Numbered(numbers string, n int) ([]bool, error) {
	answers := make([]bool, n)
	for number := range strings.SplitSeq(numbers, ",") {
		if number == "" {
			continue // of none
		}
		i, err := strconv.Atoi(number)
		if err != nil || i < 0 || i >= n {
			return nil, fmt.Errorf("the server's answer %q is not about what was asked", numbers)
		}
		answers[i] = true
	}
	return answers, nil
}
