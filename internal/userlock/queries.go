package userlock

import (
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

// What GET_LOCK answers beside NULL, and what GetLock adds.
const (
	Granted       = 1
	Taken         = 0
	HeldBySession = -1
	Refused       = -2 // the condition of Waiter.Guard was not met
)

// Literal returns a lock name as a hex literal: it means the same under every
// sql_mode and character set, and needs no placeholder.
func Literal(key string) string {
	return "X'" + hex.EncodeToString([]byte(key)) + "'"
}

// Text is Literal for text that is compared as the column it is compared with.
func Text(s string) string { return "_latin1 " + Literal(s) }

// Micros is the server's clock when the statement began, in microseconds.
// UNIX_TIMESTAMP has no ambiguous hour in autumn, as local times have.
const Micros = "(UNIX_TIMESTAMP()*1000000+MICROSECOND(NOW(6)))"

// GetLock finds re-entry in the statement that acquires: both servers evaluate
// one branch of IF only.
func GetLock(n, timeout string) string {
	return "IF(IS_USED_LOCK(" + n + ")=CONNECTION_ID(),-1,GET_LOCK(" + n + "," + timeout + "))"
}

// Release is the statement that frees locks, with a column for each.
func Release(locks ...string) string {
	return "SELECT RELEASE_LOCK(" + strings.Join(locks, ") v,RELEASE_LOCK(") + ") v"
}

// query waits for at most d, which is positive. MySQL knows whole seconds
// only, so there the hint cuts the statement short. The hint, and SET STATEMENT
// on MariaDB (which has it since 10.1.2), also keep a limit on execution time
// that is set for the session from ending the wait early. The mark is for
// markedQuery.
func (w Waiter) query(lock string, d time.Duration, mark string) string {
	ms := max(d.Milliseconds(), 1)
	if !IsMariaDB(w.Version) {
		hint := "/*+ MAX_EXECUTION_TIME(" + strconv.FormatInt(ms, 10) + ") */"
		seconds := strconv.FormatInt((ms+999)/1000, 10)
		return "SELECT " + hint + " /*" + mark + "*/ " + w.guarded(GetLock(lock, seconds))
	}
	unlimited := "SET STATEMENT max_statement_time=0 FOR "
	if older(w.Version, 10, 1, 2) {
		unlimited = ""
	}
	seconds := strconv.FormatFloat(float64(ms)/1000, 'f', 3, 64)
	return unlimited + "SELECT /*" + mark + "*/ " + w.guarded(GetLock(lock, seconds))
}

func (w Waiter) guarded(wait string) string {
	if w.Guard == "" {
		return wait
	}
	return "IF(" + w.Guard + "," + wait + "," + strconv.Itoa(Refused) + ")"
}

// markedQuery looks for the session whose statement has the mark. It is 0 where
// that does not run, or where the control pool leads to another server.
func markedQuery(mark string) string {
	return "SELECT COALESCE(MAX(id),0) FROM information_schema.processlist WHERE id<>CONNECTION_ID() AND info LIKE '%/*" + mark + "*/%'"
}

// killQuery has the id in its text because MySQL refuses KILL as a prepared
// statement (6413).
func killQuery(id int64) string { return "KILL QUERY " + strconv.FormatInt(id, 10) }

// lookQuery names variables that do not exist on every server, which SHOW
// leaves out where a SELECT would fail.
const lookQuery = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('version','version_comment'," +
	"'read_only','innodb_read_only','wsrep_on'," +
	"'group_replication_group_name','group_replication_single_primary_mode')"
