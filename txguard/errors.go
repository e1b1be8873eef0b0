package txguard

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/sqllock/go-sqllock/sqllock"
)

// What became of the work. Every error of a guarded transaction is an
// [OutcomeError] whose Outcome is one of these, which it matches; no error means that
// the work was committed while the lock was held. It matches others of these only if
// the function has passed on the error of another guarded transaction.
var (
	// ErrNotBegun: the function has not run, and nothing has been done. The reason
	// is matchable beside it: the errors of package sqllock for a lock that could
	// not be acquired or has ended, [sqllock.ErrInTransaction] for a session with
	// an open transaction, which is left as it was.
	ErrNotBegun = errors.New("txguard: not begun")

	// ErrRolledBack: nothing that the function did in the transaction was
	// committed. The reason is matchable beside it: [sqllock.ErrLost],
	// [sqllock.ErrNotHeld] if the lock was released meanwhile,
	// [sqllock.ErrTTLTooShort], [sqllock.ErrUnknown] if the server could not be
	// asked, the error of the ctx, the error that the function returned, or the server's
	// answer to COMMIT. If, on MySQL and MariaDB, the connection broke during a statement that commits implicitly, that has
	// committed, which can't be known then.
	ErrRolledBack = errors.New("txguard: rolled back")

	// ErrUnguarded: the transaction had ended before the lock was checked. What the
	// function did until then, and maybe after, was committed or rolled back
	// without the guard: it called Commit or Rollback of the Tx, or sent COMMIT or
	// ROLLBACK as a statement, or, on MySQL and MariaDB, one
	// that commits implicitly (DDL and the like), or went on after a deadlock,
	// which ends the transaction there and leaves the following statements to be committed
	// one by one. That is an error in the program, save for the deadlock: return
	// the errors of statements.
	ErrUnguarded = errors.New("txguard: not guarded")

	// ErrUnknown: COMMIT was sent, and its answer was lost. All of the work was
	// committed, or none of it. With [WithEvidence], and in the fenced form, this
	// is returned only if the database could not tell within some seconds; then
	// [Fence.Settle] can later, by [OutcomeError.Evidence].
	ErrUnknown = errors.New("txguard: the outcome of the commit is unknown")
)

// OutcomeError says what became of the work of a guarded transaction that was not
// committed for certain, and why. Match both with errors.Is.
type OutcomeError struct {
	Name     string    // of the lock, as the caller gave it
	Outcome  error     // ErrNotBegun, ErrRolledBack, ErrUnguarded or ErrUnknown
	Err      error     // why
	Evidence *Evidence // for [Fence.Settle], if Outcome is ErrUnknown and evidence was written
}

// Error returns name, outcome and reason on one line.
func (e *OutcomeError) Error() string {
	plain := strings.NewReplacer("txguard: ", "", "sqllock: ", "")
	return "txguard: " + strconv.Quote(e.Name) + ": " + plain.Replace(e.Outcome.Error()+": "+e.Err.Error())
}

// Unwrap returns outcome and reason.
func (e *OutcomeError) Unwrap() []error { return []error{e.Outcome, e.Err} }

var (
	errLockOptions = errors.New("WithLockOptions is for Do and TryDo: this lock has been acquired already")
	errShared      = fmt.Errorf("%w: the lock shares its session with others of its Pool; acquire it with sqllock.OwnSession()", sqllock.ErrUnsupported)
	errLockNil     = errors.New("the lock is nil: acquire one, or use Do")
	errLockerNil   = errors.New("the *sqllock.Locker is nil: make one by sqllock.New")
	errFuncNil     = errors.New("the function is nil")
	errLeftAsItIs  = fmt.Errorf("%w: end it first; it was left as it is", sqllock.ErrInTransaction)
	errRowsBefore  = errors.New("rows of a query are open on the session: close them first")
	errOpenRows    = errors.New("rows of a query are open on the session, or its connection is broken: close rows before the function returns")
)
