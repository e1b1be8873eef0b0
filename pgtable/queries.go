package pgtable

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/sqllock"
)

func text(s string) string { return pgsession.Text(s) }

func num(n int64) string { return strconv.FormatInt(n, 10) }

const (
	// The clock when it is evaluated: a statement that has waited for a row is evaluated
	// again.
	micros  = "(extract(epoch FROM clock_timestamp())*1000000)::bigint"
	seconds = "floor(extract(epoch FROM clock_timestamp()))::bigint"

	// waited is how long ago the server has got the message.
	waited = "(extract(epoch FROM clock_timestamp()-statement_timestamp())*1000000)::bigint"

	// until is the first second in which a row is obsolete. No sum may overflow.
	until = "(least(t.created,99999999999)+greatest(least(t.ttl,99999999999),-1)+1)"

	// durable has the commit of a grant wait for the disk, even where the session does
	// not do that: the sequence must not go back in a crash. hasty has that of a release
	// not wait: a row that comes back after a crash names a session that is gone.
	durable = "set_config('synchronous_commit',CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END,true)"
	hasty   = "set_config('synchronous_commit','off',true)"
)

// bellOf is the doorbell of a key: the advisory lock that package pgadvisory has for that
// key.
func bellOf(key string) pgsession.Lock { return pgsession.Lock{Number: pgsession.Number(key)} }

// anyBell is the condition that a row l of pg_locks is of a doorbell, and ringing that it
// is of one. Shared locks of its number are package pgadvisory's.
const anyBell = pgsession.Here + " AND l.mode='ExclusiveLock'"

func ringing(number string) string { return anyBell + " AND " + pgsession.IsNumber(number) }

// rings is whether the session of that id has the doorbell.
func rings(number, pid string) string {
	return "EXISTS (SELECT 1 FROM pg_locks l WHERE " + ringing(number) + " AND l.pid=" + pid + ")"
}

// ringsSince is rings for a session that began at start, which tells it from a later one
// of the same id where this role may see that, as it may of its own.
func ringsSince(number string, pid, start int64) string {
	return pgsession.Both(rings(number, num(pid)), "coalesce((SELECT (extract(epoch FROM a.backend_start)*1000000)::bigint FROM pg_stat_get_activity("+
		num(pid)+") a),"+num(start)+")="+num(start))
}

// begun is the condition that a row of that session was not made before the session, or
// the server, began. It is for an id of a session that lives.
func begun(id, created string) string {
	return created + ">=coalesce((SELECT floor(extract(epoch FROM a.backend_start))::bigint FROM pg_stat_get_activity(" + id + "::int) a),0)" +
		" AND " + created + ">=floor(extract(epoch FROM pg_postmaster_start_time()))::bigint"
}

// alive is whether the session that a row t names is the one that has its doorbell.
func alive(number string) string {
	return pgsession.Both(rings(number, "t.connection_id"), begun("t.connection_id", "t.created"))
}

// queries makes the statements on one table.
type queries struct {
	table    string // quoted
	sequence string // as a regclass
	short    string // tells the statements that are prepared from those on other tables
}

// newQueries is for a name that may have a schema in front.
func newQueries(name string) queries {
	schema, table, qualified := strings.Cut(name, ".")
	if !qualified {
		schema, table = "", name
	} else {
		schema = `"` + schema + `".`
	}
	sum := sha256.Sum256([]byte(name))
	return queries{
		table: schema + `"` + table + `"`, sequence: text(schema+`"`+sequenceOf(table)+`"`) + "::regclass",
		short: hex.EncodeToString(sum[:8]),
	}
}

func sequenceOf(table string) string { return table + "_token" }

// columns are those of a row t that everybody wants to know, with what is left of it.
const columns = "t.connection_id,t.created,t.ttl,t.token,t.holder," + until + "*1000000-" + micros + " AS remains"

// where finds the row of a key.
func where(key string) string { return whereName(text(key)) }

func whereName(name string) string { return " WHERE t.name=" + name }

// try takes the doorbell, if it is free, and then makes the row. Before that it removes a
// row that this session, or one of its id, has left behind: with its doorbell held by the
// session that it names, it would look like a hung holder's.
func (q queries) try(key string, ttl int64, process string) string {
	return "DELETE FROM " + q.table + " t" + where(key) + " AND t.connection_id=pg_backend_pid();" + q.claim(key, bellOf(key).Take(), ttl, process)
}

// claim makes the row, or replaces it, if rung is true, which is evaluated once and first.
// It answers with how that went, and with the row that was there.
func (q queries) claim(key, rung string, ttl int64, process string) string {
	return "WITH " + q.claimed(text(key), rung, num(ttl), text(process))
}

func (q queries) claimed(name, rung, ttl, process string) string {
	return "bell AS MATERIALIZED (SELECT " + rung + " AS rung," + waited + " AS waited," + durable + ")," +
		"old AS MATERIALIZED (SELECT " + columns + " FROM " + q.table + " t" + whereName(name) + ")," +
		"new AS (" + q.insert(name, "pg_backend_pid()", ttl, process) + " RETURNING t.token,t.xmax<>0 AS replaced)" +
		" SELECT bell.rung,bell.waited,new.token,new.replaced," + oldColumns + " FROM bell LEFT JOIN new ON true LEFT JOIN old ON true"
}

// What is prepared is one statement, and in a transaction that the session's defaults
// make; set_config takes the place of SET LOCAL.
const (
	nameArg, ttlArg, processArg = "$1::text", "$2::bigint", "$3::text"
	tokenArg, pidArg            = "$2::bigint", "$3::bigint"

	bounded = "set_config('lock_timeout','4000',true) IS NOT NULL"
)

// argument is the doorbell of the name.
func argument() pgsession.Lock { return pgsession.Lock{Number: "hashtextextended(" + nameArg + ",0)"} }

// tryPrepared is try, with the name, the TTL and the process as arguments. A row that the
// session has left behind is not removed before, but locked, until it is replaced. It
// rings only under READ COMMITTED, and answers with NULL otherwise.
func (q queries) tryPrepared() string {
	return "WITH own AS MATERIALIZED (SELECT 1 FROM " + q.table + " t" + whereName(nameArg) + " AND t.connection_id=pg_backend_pid() FOR UPDATE)," +
		q.claimed(nameArg, "CASE WHEN current_setting('transaction_isolation')='read committed' THEN CASE WHEN "+bounded+
			" THEN CASE WHEN (SELECT count(*) FROM own)>=0 THEN "+argument().Take()+" END END END", ttlArg, processArg)
}

// releasePrepared is release, with the name, the token and the session as arguments.
func (q queries) releasePrepared() string {
	return "WITH limits AS MATERIALIZED (SELECT " + bounded + " AS set)," +
		q.released(argument(), whereName(nameArg),
			" AND (SELECT set FROM limits)"+unmarked(tokenArg, pidArg))
}

const oldColumns = "old.connection_id,old.created,old.ttl,old.token,old.holder,old.remains"

// insert makes the row of a session whose doorbell the CTE bell is about. A token is
// taken after that.
func (q queries) insert(name, session, ttl, process string) string {
	return "INSERT INTO " + q.table + " AS t (name,connection_id,created,ttl,lock_acquired,token,holder)" +
		" SELECT " + name + "," + session + "," + seconds + "," + ttl + ",1,nextval(" + q.sequence + ")," + process +
		" FROM bell WHERE bell.rung ON CONFLICT (name) DO UPDATE SET connection_id=EXCLUDED.connection_id,created=EXCLUDED.created," +
		"ttl=EXCLUDED.ttl,lock_acquired=1,token=greatest(EXCLUDED.token,t.token+1),holder=EXCLUDED.holder"
}

// claimFor is claim for another session, which has taken the doorbell before. What comes
// late, when that has let go of it, must not replace the row of the next holder: it
// replaces no row but the one that was there when it began.
func (q queries) claimFor(key string, pid, start, ttl int64, process string) string {
	return "WITH bell AS MATERIALIZED (SELECT " + ringsSince(pgsession.Number(key), pid, start) + " AS rung,0 AS waited," + durable + ")," +
		"old AS MATERIALIZED (SELECT " + columns + " FROM " + q.table + " t" + where(key) + ")," +
		"new AS (" + q.insert(text(key), num(pid), num(ttl), text(process)) +
		" WHERE (t.connection_id,t.created,t.token)=(SELECT old.connection_id,old.created,old.token FROM old) RETURNING t.token,t.xmax<>0 AS replaced)" +
		" SELECT bell.rung,bell.waited,new.token,new.replaced," + oldColumns + " FROM bell LEFT JOIN new ON true LEFT JOIN old ON true"
}

// tidy is what try does first, for another session, which does not hold the doorbell.
func (q queries) tidy(key string, pid int64) string {
	return "DELETE FROM " + q.table + " t" + where(key) + " AND t.connection_id=" + num(pid) + " AND NOT " + rings(pgsession.Number(key), num(pid))
}

func (q queries) look(key string) string {
	return "SELECT " + columns + " FROM " + q.table + " t" + where(key)
}

// takeOver marks a row whose time is over, so that no extension, release or pass of its
// holder finds it any more, and ends the session if it has the doorbell. What ends it is
// evaluated when the row is marked, and an error takes the mark back. It answers with the
// row, how often it has been marked, and whether its session was told to end.
func (q queries) takeOver(key string) string { return q.end(key, until+"<="+seconds) }

// breakUp is takeOver for a row as it was read, whatever its time.
func (q queries) breakUp(key string, r *row) string { return q.end(key, as(r)) }

func (q queries) end(key, condition string) string {
	session := pgsession.Both(rings(pgsession.Number(key), "m.connection_id"), pgsession.Both(begun("m.connection_id", "m.created"), "pg_terminate_backend(m.connection_id::int)"))
	return "WITH m AS (UPDATE " + q.table + " AS t SET lock_acquired=least(t.lock_acquired+1,100)" + where(key) + " AND " + condition +
		" RETURNING " + columns + ",t.lock_acquired) SELECT m.connection_id,m.created,m.ttl,m.token,m.holder,m.remains,m.lock_acquired-1," + session + " FROM m"
}

// as is the condition that a row is as it was read.
func as(r *row) string {
	return "t.connection_id=" + num(r.session) + " AND t.created=" + num(r.created) + " AND t.token=" + num(r.token)
}

// mine finds the row of a grant that nobody has marked.
func mine(g sqllock.Grant) string {
	return where(g.Key) + unmarked(num(g.Token), num(g.Session))
}

func unmarked(token, session string) string {
	return " AND t.token=" + token + " AND t.connection_id=" + session + " AND t.lock_acquired=1"
}

// release removes the row and frees the doorbell, in that order, so that nobody ends the
// session for a lock that it has released. It answers with how many references there
// were; -1 if the session has another grant of that name, of which nothing is touched, or
// is about to be ended; and -2 if there is no row of it, where the doorbell is freed.
func (q queries) release(g sqllock.Grant) string {
	return "WITH " + q.released(bellOf(g.Key), where(g.Key), unmarked(num(g.Token), num(g.Session)))
}

func (q queries) released(k pgsession.Lock, where, grant string) string {
	return "gone AS (DELETE FROM " + q.table + " t" + where + grant + " RETURNING 1) SELECT CASE WHEN EXISTS (SELECT 1 FROM gone) THEN " + k.Freed() +
		" WHEN EXISTS (SELECT 1 FROM " + q.table + " t" + where + " AND t.connection_id=pg_backend_pid()) THEN -1" +
		" ELSE CASE " + k.Freed() + " WHEN 0 THEN -2 ELSE -2 END END," + hasty
}

// drop removes the row of a grant over another session. It answers as release does, with
// 0 for a row that was removed.
func (q queries) drop(g sqllock.Grant) string {
	return "WITH gone AS (DELETE FROM " + q.table + " t" + mine(g) + " RETURNING 1) SELECT CASE WHEN EXISTS (SELECT 1 FROM gone) THEN 0" +
		" WHEN EXISTS (SELECT 1 FROM " + q.table + " t" + where(g.Key) + " AND t.connection_id=" + num(g.Session) + ") THEN -1 ELSE -2 END," + hasty
}

// relinquish is release for whatever grant.
func (q queries) relinquish(key string) string {
	return "DELETE FROM " + q.table + " t" + where(key) + " AND t.connection_id=pg_backend_pid();" + bellOf(key).LetGo()
}

// isHeld is the condition that the session of g has the doorbell, asked there or
// elsewhere.
func isHeld(g sqllock.Grant, there bool) string {
	if there {
		return bellOf(g.Key).Held()
	}
	return ringsSince(pgsession.Number(g.Key), g.Session, startOf(g))
}

// left asks how many microseconds are left of g; there is no row if it is lost.
func (q queries) left(g sqllock.Grant, there bool) string {
	return "SELECT " + until + "*1000000-" + micros + " FROM " + q.table + " t" + mine(g) + " AND " + isHeld(g, there)
}

func (q queries) extend(g sqllock.Grant, ttl int64, there bool) string {
	return "UPDATE " + q.table + " AS t SET created=" + seconds + ",ttl=" + num(ttl) + mine(g) + " AND " + until + ">" + seconds +
		" AND " + isHeld(g, there) + " RETURNING 1"
}

// pass is an extension with a new token, on the session.
func (q queries) pass(g sqllock.Grant, ttl int64) string {
	return "UPDATE " + q.table + " AS t SET created=" + seconds + ",ttl=" + num(ttl) + ",token=greatest(nextval(" + q.sequence + "),t.token+1)" +
		mine(g) + " AND " + until + ">" + seconds + " AND " + isHeld(g, true) + " RETURNING t.token," + durable
}

// grantRows is a table v of grants, each with its number.
func grantRows(grants []sqllock.Grant) string {
	values := make([]string, len(grants))
	for i, g := range grants {
		values[i] = "(" + strconv.Itoa(i) + "," + text(g.Key) + "," + num(g.Token) + "::bigint," + num(g.Session) + "," + num(startOf(g)) + "::bigint)"
	}
	return "(VALUES " + strings.Join(values, ",") + ") v(i,key,token,pid,start) LEFT JOIN pg_stat_get_activity(NULL) a ON a.pid=v.pid"
}

// isGrant is the condition that a row t is of a grant v that is held, and in time. IS TRUE
// keeps the server from making a nested loop of it, since it takes pg_locks for one row:
// of thousands that would last for seconds.
func isGrant() string {
	classid, objid := pgsession.Halves("hashtextextended(v.key,0)")
	return "((v.pid," + classid + "," + objid + ") IN (SELECT l.pid,l.classid,l.objid FROM pg_locks l WHERE " + anyBell + ")) IS TRUE AND t.name=v.key AND t.token=v.token AND t.connection_id=v.pid AND t.lock_acquired=1 AND " + until + ">" + seconds +
		" AND coalesce((extract(epoch FROM a.backend_start)*1000000)::bigint,v.start)=v.start"
}

// watch answers with the numbers, counted from 0, of the grants that are held.
func (q queries) watch(grants []sqllock.Grant) string {
	return "SELECT coalesce(string_agg(v.i::text,','),'') FROM " + grantRows(grants) + "," + q.table + " t WHERE " + isGrant()
}

// extendAll is extend for several grants, asked elsewhere. It answers as watch does.
func (q queries) extendAll(grants []sqllock.Grant, ttl int64) string {
	return "WITH e AS (UPDATE " + q.table + " AS t SET created=" + seconds + ",ttl=" + num(ttl) + " FROM " + grantRows(grants) + " WHERE " + isGrant() +
		" RETURNING v.i) SELECT coalesce(string_agg(e.i::text,','),'') FROM e"
}

// about is what holders are asked about: of a row t, which may be missing, and a session
// a. A role sees the state of its own sessions, or needs pg_read_all_stats.
const about = ",coalesce(a.usename,''),coalesce(host(a.client_addr)||':'||a.client_port,''),coalesce(a.datname,''),coalesce(a.state,'')"

// holder asks for whom there is to see of one key.
func (q queries) holder(key string) string {
	number := pgsession.Number(key)
	return "SELECT t.name," + columns + "," + until + "," + alive(number) + ",o.pid" + about +
		" FROM (SELECT (SELECT min(l.pid) FROM pg_locks l WHERE " + ringing(number) + ") AS pid) o" +
		" LEFT JOIN " + q.table + " t ON t.name=" + text(key) +
		" LEFT JOIN pg_stat_activity a ON a.pid=coalesce(t.connection_id,o.pid)"
}

// holders asks for all rows.
func (q queries) holders() string {
	return "SELECT t.name," + columns + "," + until + "," + alive("hashtextextended(t.name,0)") + ",NULL::int" + about +
		" FROM " + q.table + " t LEFT JOIN pg_stat_activity a ON a.pid=t.connection_id ORDER BY t.name"
}

// spy is look for a Break: with whether the session of the row has the doorbell, and who
// has it.
func (q queries) spy(key string) string {
	number := pgsession.Number(key)
	return "SELECT " + columns + "," + alive(number) + ",o.pid FROM (SELECT (SELECT min(l.pid) FROM pg_locks l WHERE " + ringing(number) + ") AS pid) o" +
		" LEFT JOIN " + q.table + " t ON t.name=" + text(key)
}

// remove removes a row as it was read, if its session does not hold its doorbell.
func (q queries) remove(key string, r *row) string {
	return "WITH gone AS (DELETE FROM " + q.table + " t" + where(key) + " AND " + as(r) + " AND NOT (" + alive(pgsession.Number(key)) + ") RETURNING 1)" +
		" SELECT count(*) FROM gone"
}

// endBare ends a session that has the doorbell and no row.
func endBare(key string, pid int64) string {
	return "SELECT " + pgsession.Both(rings(pgsession.Number(key), num(pid)), "pg_terminate_backend("+num(pid)+")")
}

// sweep removes what nobody holds. A row that is no more as it was read has been taken
// over meanwhile.
func (q queries) sweep() string {
	return "WITH dead AS MATERIALIZED (SELECT t.name,t.token,t.connection_id FROM " + q.table + " t WHERE NOT (" + alive("hashtextextended(t.name,0)") + "))," +
		"gone AS (DELETE FROM " + q.table + " t USING dead d WHERE t.name=d.name AND t.token=d.token AND t.connection_id=d.connection_id RETURNING 1)" +
		" SELECT count(*) FROM gone"
}
