package userlock

import (
	"encoding/hex"
	"strconv"
	"time"
)

// What GET_LOCK answers beside NULL, and what GetLock adds.
const (
	Granted       = 1
	Taken         = 0
	HeldBySession = -1
)

// Literal returns a lock name as a hex literal: it means the same under every
// sql_mode and character set, and needs no placeholder.
func Literal(key string) string {
	return "X'" + hex.EncodeToString([]byte(key)) + "'"
}

// GetLock finds re-entry in the statement that acquires: both servers evaluate
// one branch of IF only.
func GetLock(n, timeout string) string {
	return "IF(IS_USED_LOCK(" + n + ")=CONNECTION_ID(),-1,GET_LOCK(" + n + "," + timeout + "))"
}

// Release is the statement that frees lock.
func Release(lock string) string { return "SELECT RELEASE_LOCK(" + lock + ") v" }

// waitQuery waits for at most d, which is positive. MySQL knows whole seconds
// only, so there the hint cuts the statement short. The hint, and SET STATEMENT
// on MariaDB (which has it since 10.1.2), also keep a limit on execution time
// that is set for the session from ending the wait early. The mark is for
// markedQuery.
func waitQuery(lock string, d time.Duration, version, mark string) string {
	ms := max(d.Milliseconds(), 1)
	if !IsMariaDB(version) {
		hint := "/*+ MAX_EXECUTION_TIME(" + strconv.FormatInt(ms, 10) + ") */"
		seconds := strconv.FormatInt((ms+999)/1000, 10)
		return "SELECT " + hint + " /*" + mark + "*/ " + GetLock(lock, seconds)
	}
	unlimited := "SET STATEMENT max_statement_time=0 FOR "
	if older(version, 10, 1, 2) {
		unlimited = ""
	}
	seconds := strconv.FormatFloat(float64(ms)/1000, 'f', 3, 64)
	return unlimited + "SELECT /*" + mark + "*/ " + GetLock(lock, seconds)
}

// markedQuery looks for the statement with the mark on session id. It is not
// found where it does not run, or where the control pool leads to another
// server.
func markedQuery(id int64, mark string) string {
	return "SELECT COUNT(*) FROM information_schema.processlist WHERE id=" + strconv.FormatInt(id, 10) +
		" AND info LIKE '%/*" + mark + "*/%'"
}

// killQuery has the id in its text because MySQL refuses KILL as a prepared
// statement (6413).
func killQuery(id int64) string { return "KILL QUERY " + strconv.FormatInt(id, 10) }

// lookQuery names variables that do not exist on every server, which SHOW
// leaves out where a SELECT would fail.
const lookQuery = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('version','version_comment'," +
	"'read_only','innodb_read_only','wsrep_on'," +
	"'group_replication_group_name','group_replication_single_primary_mode')"
