package mysqlnamed

import (
	"strconv"
	"strings"

	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

// tryQuery also brings the session's id and what its kind is told by. The short
// aliases keep the expressions out of the answer's column names.
func tryQuery(keys []string) string {
	var get string
	if len(keys) == 1 { // most often
		get = userlock.GetLock(userlock.Literal(keys[0]), "0")
	} else {
		get = getLocks(literals(keys))
	}
	return "SELECT " + get + " v,CONNECTION_ID() c,@@hostname h,@@port p,@@read_only r"
}

// getLocks takes all of locks, and answers 1, or none: when one is not to be had, what
// was taken before it is freed again. Both servers evaluate one branch of IF only, and
// its condition once.
func getLocks(locks []string) string {
	first, others := locks[0], locks[1:]
	get := userlock.GetLock(first, "0")
	if len(others) == 0 {
		return get
	}
	return "IF(" + get + "=1,IF(" + getLocks(others) + "=1,1,IF(RELEASE_LOCK(" + first + ")=1,0,NULL)),0)"
}

func literals(keys []string) []string {
	all := make([]string, len(keys))
	for i, key := range keys {
		all[i] = userlock.Literal(key)
	}
	return all
}

// checkQuery asks whether the session holds the lock, or any of several.
func checkQuery(keys ...string) string {
	all := make([]string, len(keys))
	for i, lock := range literals(keys) {
		all[i] = "IS_USED_LOCK(" + lock + ")=CONNECTION_ID()"
	}
	return "SELECT " + strings.Join(all, " OR ") + " v"
}

// watchQuery also brings the number by which a restart is noticed: the second of the
// start, and a count of its own calls, without the server id in front.
func watchQuery(grants []sqllock.Grant) string {
	all := make([]string, len(grants))
	for i, g := range grants {
		all[i] = "IS_USED_LOCK(" + userlock.Literal(g.Key) + ")=" + strconv.FormatInt(g.Session, 10) + " v"
	}
	return "SELECT CONCAT_WS('/',@@hostname,@@port) h,UUID_SHORT()&0xFFFFFFFFFFFFFF s," + strings.Join(all, ",")
}

// holderQuery asks for the lock and for its session in one statement, so that
// an id is not looked up after it has changed hands. A user without the PROCESS
// privilege sees its own sessions only; of others it gets the id.
func holderQuery(key string) string {
	return "SELECT h.id,COALESCE(p.user,''),COALESCE(p.host,''),COALESCE(p.db,''),COALESCE(p.command,'')," +
		"UNIX_TIMESTAMP()-p.time FROM (SELECT IS_USED_LOCK(" + userlock.Literal(key) + ") AS id) h" +
		" LEFT JOIN information_schema.processlist p ON p.id=h.id"
}

// killQuery ends the session of h, if it still holds the lock.
func killQuery(h sqllock.Holder) string {
	return userlock.Kill(h.Session, "IS_USED_LOCK("+userlock.Literal(h.Key)+")="+strconv.FormatInt(h.Session, 10))
}

// instrumentQuery asks whether the server records locks of metadata, which user-level locks
// are among.
const instrumentQuery = "SELECT enabled FROM performance_schema.setup_instruments WHERE name='wait/lock/metadata/sql/mdl'"

// listQuery asks for what has been granted. threads, which shows everybody all, leaves the
// port out of the host.
const listQuery = "SELECT l.object_name,COALESCE(t.processlist_id,0),COALESCE(p.user,t.processlist_user,''),COALESCE(p.host,t.processlist_host,'')," +
	"COALESCE(p.db,t.processlist_db,''),COALESCE(p.command,t.processlist_command,''),UNIX_TIMESTAMP()-COALESCE(p.time,t.processlist_time)" +
	" FROM performance_schema.metadata_locks l LEFT JOIN performance_schema.threads t ON t.thread_id=l.owner_thread_id" +
	" LEFT JOIN information_schema.processlist p ON p.id=t.processlist_id" +
	" WHERE l.object_type='USER LEVEL LOCK' AND l.lock_status='GRANTED'"
