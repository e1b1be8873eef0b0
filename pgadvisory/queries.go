package pgadvisory

import (
	"strconv"
	"strings"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/sqllock"
)

// lock is one on the server: what it is called, and whether it is shared.
type lock struct {
	key    string
	shared bool
}

// suffix is that of the server's functions for it.
func (l lock) suffix() string {
	if l.shared {
		return "_shared"
	}
	return ""
}

func (l lock) tryCall() string    { return l.trying(pgsession.Number(l.key)) }
func (l lock) unlockCall() string { return l.unlocking(pgsession.Number(l.key)) }

func (l lock) trying(number string) string {
	return "pg_try_advisory_lock" + l.suffix() + "(" + number + ")"
}

func (l lock) unlocking(number string) string {
	return "pg_advisory_unlock" + l.suffix() + "(" + number + ")"
}

// both is what a condition and the same again come to, evaluated in that order: CASE
// evaluates no branch that it does not take.
func both(first, second string) string {
	return "CASE WHEN " + first + " THEN " + second + " ELSE false END"
}

// try takes two references on the lock, if it is free. The second one is for check.
func (l lock) try(number string) string { return "SELECT " + both(l.trying(number), l.trying(number)) }

func (l lock) take() string { return both(l.tryCall(), l.tryCall()) }

// wait waits for the first reference, and then takes the second one. Both are in one
// statement, so that nothing is left to be planned when the wait is over.
func (l lock) wait() string {
	return "SELECT CASE WHEN pg_advisory_lock" + l.suffix() + "(" + pgsession.Number(l.key) + ") IS NULL THEN false ELSE " + l.tryCall() + " END"
}

// xact is of the transaction.
func (l lock) xact(function string) string {
	return "SELECT " + function + l.suffix() + "(" + pgsession.Number(l.key) + ")"
}

// free gives back both references, and is true if there was one.
func (l lock) free() string {
	return both(l.unlockCall(), "CASE WHEN "+l.unlockCall()+" THEN true ELSE true END")
}

func (l lock) release(number string) string {
	return "SELECT CASE WHEN " + l.unlocking(number) + " THEN CASE WHEN " + l.unlocking(number) + " THEN 2 ELSE 1 END ELSE 0 END"
}

// check gives back one reference and takes it again. The first one keeps the lock
// meanwhile; a session without the lock has none to give back.
func (l lock) check(number string) string {
	return "SELECT " + both(l.unlocking(number), l.trying(number))
}

// letGo gives back what there is to give back. To ask before that keeps the server from
// logging a warning.
func (l lock) letGo() string {
	return "SELECT " + l.free() + " WHERE " + anyHeld([]string{l.key})
}

// takeAll takes all of locks, and answers true, or none: when one is not to be had, what
// was taken before it is given back.
func takeAll(locks []lock) string {
	first, others := locks[0], locks[1:]
	if len(others) == 0 {
		return first.take()
	}
	return both(first.take(), "CASE WHEN "+takeAll(others)+" THEN true ELSE NOT "+first.free()+" END")
}

// here is the rows of pg_locks that are advisory locks of this database by one number,
// which the server shows in two halves. Those of two numbers have another objsubid. To
// look into pg_database would take a place in the lock table, which may be full.
const here = "l.locktype='advisory' AND l.objsubid=1 AND l.database=(SELECT datid FROM pg_stat_get_activity(pg_backend_pid()))"

// isKey is the condition that a row of pg_locks is of a number.
func isKey(number string) string {
	return "l.classid=(((" + number + ")>>32)&4294967295)::oid AND l.objid=((" + number + ")&4294967295)::oid"
}

// anyHeld is whether the session holds one of keys, in whatever mode.
func anyHeld(keys []string) string {
	is := make([]string, len(keys))
	for i, key := range keys {
		is[i] = isKey(pgsession.Number(key))
	}
	return "EXISTS (SELECT 1 FROM pg_locks l WHERE " + here + " AND l.pid=pg_backend_pid() AND l.granted AND (" + strings.Join(is, " OR ") + "))"
}

// who is what is to be told of the sessions that hold a lock: a role sees the state of its
// own sessions, or needs pg_read_all_stats; of others it gets the id and the user.
func who(key string) string {
	return "SELECT l.pid,a.usename,host(a.client_addr)||':'||a.client_port AS host,a.datname,a.state,a.application_name," +
		"extract(epoch FROM a.state_change)::bigint AS since FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid=l.pid" +
		" WHERE " + here + " AND l.granted AND " + isKey(pgsession.Number(key))
}

const oldest = " ORDER BY since,pid LIMIT 1"

// holderQuery asks for the lock and for its session in one statement.
func holderQuery(key string) string { return who(key) + oldest }

// breakQuery ends who holds the lock, and answers as holderQuery, and with the ids of all
// whom it has told to end.
func breakQuery(key string) string {
	return "WITH h AS MATERIALIZED (" + who(key) + "), told AS MATERIALIZED (SELECT pid,usename,host,datname,state,application_name,since,pg_terminate_backend(pid) AS told FROM h)" +
		" SELECT pid,usename,host,datname,state,application_name,since,coalesce((SELECT string_agg(pid::text,',') FROM told WHERE told),'') FROM told" + oldest
}

// stillQuery asks who of ids still holds the lock.
func stillQuery(key, ids string) string {
	return "SELECT coalesce(string_agg(l.pid::text,','),'') FROM pg_locks l WHERE " + here + " AND l.granted AND " + isKey(pgsession.Number(key)) + " AND l.pid IN (" + ids + ")"
}

// watchQuery answers with the numbers, counted from 0, of the grants that are held. A
// session is told from a later one of the same id by when it began, where this role may
// see that, as it may of its own. IS TRUE keeps the server from making a nested loop of
// it, since it takes pg_locks for one row: of thousands that would last for seconds.
func watchQuery(grants []sqllock.Grant) string {
	values := make([]string, len(grants))
	for i, g := range grants {
		own, _ := g.State.(grant)
		mode := "ExclusiveLock"
		if own.lock.shared {
			mode = "ShareLock"
		}
		values[i] = "(" + strconv.Itoa(i) + "," + strconv.FormatInt(g.Session, 10) + "," + pgsession.Number(g.Key) + ",'" + mode + "'," + strconv.FormatInt(own.start, 10) + "::bigint)"
	}
	return "SELECT coalesce(string_agg(v.i::text,','),'') FROM (VALUES " + strings.Join(values, ",") + ") v(i,pid,k,mode,start)" +
		" LEFT JOIN pg_stat_get_activity(NULL) a ON a.pid=v.pid" +
		" WHERE coalesce((extract(epoch FROM a.backend_start)*1000000)::bigint,v.start)=v.start" +
		" AND ((v.pid,v.mode,((v.k>>32)&4294967295)::oid,(v.k&4294967295)::oid) IN" +
		" (SELECT l.pid,l.mode,l.classid,l.objid FROM pg_locks l WHERE l.granted AND " + here + ")) IS TRUE"
}
