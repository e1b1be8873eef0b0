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

// of is the lock by an expression of its number, and it that of its key.
func (l lock) of(number string) pgsession.Lock {
	return pgsession.Lock{Number: number, Shared: l.shared}
}

func (l lock) it() pgsession.Lock { return l.of(pgsession.Number(l.key)) }

// What is sent again and again.
func (l lock) try(number string) string     { return "SELECT " + l.of(number).Take() }
func (l lock) release(number string) string { return "SELECT " + l.of(number).Freed() }
func (l lock) check(number string) string   { return "SELECT " + l.of(number).Held() }

// xact is of the transaction.
func (l lock) xact(function string) string {
	return "SELECT " + function + l.it().Suffix() + "(" + pgsession.Number(l.key) + ")"
}

// takeAll takes all of locks, and answers true, or none: when one is not to be had, what
// was taken before it is given back.
func takeAll(locks []lock) string {
	first, others := locks[0].it(), locks[1:]
	if len(others) == 0 {
		return first.Take()
	}
	return pgsession.Both(first.Take(), "CASE WHEN "+takeAll(others)+" THEN true ELSE "+first.Freed()+"=0 END")
}

// who is what is to be told of the sessions that hold a lock: a role sees the state of its
// own sessions, or needs pg_read_all_stats; of others it gets the id and the user.
func who(key string) string {
	return "SELECT l.pid,a.usename,host(a.client_addr)||':'||a.client_port AS host,a.datname,a.state,a.application_name," +
		"extract(epoch FROM a.state_change)::bigint AS since FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid=l.pid" +
		" WHERE " + pgsession.Here + " AND " + pgsession.IsNumber(pgsession.Number(key))
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
	return "SELECT coalesce(string_agg(l.pid::text,','),'') FROM pg_locks l WHERE " + pgsession.Here + " AND " + pgsession.IsNumber(pgsession.Number(key)) + " AND l.pid IN (" + ids + ")"
}

// breakOneQuery ends a session, if it holds the lock.
func breakOneQuery(key string, pid int64) string {
	return "SELECT pg_terminate_backend(l.pid) FROM pg_locks l WHERE " + pgsession.Here + " AND " + pgsession.IsNumber(pgsession.Number(key)) +
		" AND l.pid=" + strconv.FormatInt(pid, 10) + " LIMIT 1"
}

// listQuery asks for all locks of one number in the database.
func listQuery(keys []string) string {
	values := []string{"(NULL::bigint,NULL::text)"}
	for _, key := range keys {
		values = append(values, "("+pgsession.Number(key)+","+pgsession.Text(key)+")")
	}
	return "SELECT coalesce(n.key,l.number::text),l.pid,coalesce(a.usename,''),coalesce(host(a.client_addr)||':'||a.client_port,''),coalesce(a.datname,'')," +
		"coalesce(a.state,''),coalesce(a.application_name,''),extract(epoch FROM a.state_change)::bigint" +
		" FROM (SELECT DISTINCT l.pid,(l.classid::bigint<<32)|l.objid::bigint AS number FROM pg_locks l WHERE " + pgsession.Here + ") l" +
		" LEFT JOIN pg_stat_activity a ON a.pid=l.pid LEFT JOIN (VALUES " + strings.Join(values, ",") + ") n(number,key) ON n.number=l.number"
}

// watchQuery answers with the numbers, counted from 0, of the grants that are held. A
// session is told from a later one of the same id by when it began, where this role may
// see that, as it may of its own. IS TRUE keeps the server from making a nested loop of
// it, since it takes pg_locks for one row: of thousands that would last for seconds.
func watchQuery(grants []sqllock.Grant) string {
	values := make([]string, len(grants))
	for i, g := range grants {
		own, _ := g.State.(grant)
		values[i] = "(" + strconv.Itoa(i) + "," + strconv.FormatInt(g.Session, 10) + "," + pgsession.Number(g.Key) + ",'" + own.lock.it().Mode() + "'," + strconv.FormatInt(own.start, 10) + "::bigint)"
	}
	classid, objid := pgsession.Halves("v.k")
	return "SELECT coalesce(string_agg(v.i::text,','),'') FROM (VALUES " + strings.Join(values, ",") + ") v(i,pid,k,mode,start)" +
		" LEFT JOIN pg_stat_get_activity(NULL) a ON a.pid=v.pid" +
		" WHERE coalesce((extract(epoch FROM a.backend_start)*1000000)::bigint,v.start)=v.start" +
		" AND ((v.pid,v.mode," + classid + "," + objid + ") IN (SELECT l.pid,l.mode,l.classid,l.objid FROM pg_locks l WHERE " + pgsession.Here + ")) IS TRUE"
}
