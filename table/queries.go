package table

import (
	"strconv"
	"strings"

	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

func text(s string) string { return userlock.Text(s) }

func num(n int64) string { return strconv.FormatInt(n, 10) }

const (
	// kindExpr tells sessions apart for which one look at server and table does
	// not serve; its hex digits travel, so that no character set can change it.
	kindExpr = "CONCAT_WS('/',@@hostname,@@port,DATABASE())"

	micros = userlock.Micros

	// ownMicros is the clock when it is evaluated, which is after the doorbell
	// has been taken in the same statement: a statement that began earlier may
	// take it later. What passed since the beginning is taken to be a quarter of an
	// hour or less, forth or back: switches of a time zone are multiples of half an
	// hour, and drop out.
	ownMicros = "(" + micros + "+MOD(TIMESTAMPDIFF(MICROSECOND,NOW(6),SYSDATE(6))+87300000000,1800000000)-900000000)"

	// started is the second in which the server started, as UUID_SHORT has it.
	started = "((UUID_SHORT()>>24)&0xFFFFFFFF)"
)

// until is the first second in which a row is obsolete: the PHP package compares
// created+ttl < now. Its TTLs may be anything; no sum may overflow.
const until = "(COALESCE(created,0)+GREATEST(LEAST(COALESCE(ttl,0),99999999999),-1)+1)"

// usedBy is the session that holds the doorbell of a name that is stored in a
// row. MariaDB compares the bytes of names as clients send them, so a name that
// is not ASCII is looked for in both encodings it may have.
// For no name, and for the empty one, MySQL has an error.
func usedBy(name string) string {
	return "IF(COALESCE(" + name + ",'')='',NULL,COALESCE(IS_USED_LOCK(CONVERT(" + name + " USING utf8mb4)),IS_USED_LOCK(" + name + ")))"
}

// queries makes the statements on one table. migrated tells whether it has the
// columns token and holder.
type queries struct {
	table    string // quoted
	migrated bool
}

// insert is the body of both ways to make a row: if the condition is not met, the
// name is NULL, which is error 1048 under every sql_mode (INSERT … SELECT … WHERE
// costs three times as much on MariaDB). Values are evaluated from left to right.
// The token goes to the client as the insert id.
func (q queries) insert(condition, key, session, clock string, ttl, floor int64, process string) string {
	columns, values := "", ""
	if q.migrated {
		columns = ",token,holder"
		values = ",LAST_INSERT_ID(GREATEST(" + clock + "," + num(floor) + "))," + text(process)
	}
	return "INSERT INTO " + q.table + " (name,connection_id,created,ttl,lock_acquired" + columns + ") VALUES (" +
		"IF(" + condition + "," + text(key) + ",NULL)," + session + ",UNIX_TIMESTAMP()," + num(ttl) + ",1" + values + ")"
}

// try takes the doorbell and makes the row in one statement. The server locks a
// MyISAM table before it evaluates GET_LOCK, so the timeout has to be 0.
func (q queries) try(key, kind string, ttl, floor int64, process string) string {
	return q.insert("IF("+isKind(kind)+","+userlock.GetLock(text(key), "0")+",-2)=1", key, "CONNECTION_ID()", ownMicros, ttl, floor, process)
}

// claim makes the row for the session that has held the doorbell since before the
// statement began: this one, if session is 0.
func (q queries) claim(key string, session, ttl, floor int64, process string) string {
	id := "CONNECTION_ID()"
	if session != 0 {
		id = num(session)
	}
	return q.insert("IS_USED_LOCK("+text(key)+")="+id, key, id, micros, ttl, floor, process)
}

// isKind is the condition that the session is of a kind that has been looked at.
func isKind(kind string) string { return kindExpr + "=X'" + kind + "'" }

// look asks for everything about key at once.
func (q queries) look(key string) string {
	token, holder := "0", "''"
	if q.migrated {
		token, holder = "COALESCE(r.token,0)", "COALESCE(r.holder,'')"
	}
	return "SELECT HEX(CONVERT(r.name USING utf8mb4)) n,r.connection_id,r.created,r.ttl,r.lock_acquired," + token + " t," + holder + " h," +
		usedBy("r.name") + " u,IS_USED_LOCK(" + text(key) + ") b," +
		until + "*1000000-" + micros + " l," + started + " s,CONNECTION_ID() c,HEX(" + kindExpr + ") k" +
		" FROM (SELECT 1 AS x) o LEFT JOIN " + q.table + " r ON r.name=" + text(key)
}

// as is the condition that a row is as it was read.
func (q queries) as(r *row) string {
	where := " WHERE name=" + r.literal() + " AND COALESCE(connection_id,0)=" + num(r.session) + " AND COALESCE(created,0)=" + num(r.created) +
		" AND COALESCE(ttl,0)=" + num(r.ttl) + " AND COALESCE(lock_acquired,0)=" + num(r.acquired)
	if q.migrated {
		where += " AND token=" + num(r.token)
	}
	return where
}

func (q queries) remove(r *row) string { return "DELETE FROM " + q.table + q.as(r) }

func (q queries) mark(r *row, mark int64) string {
	return "UPDATE " + q.table + " SET lock_acquired=" + num(mark) + q.as(r)
}

// kill ends the session of r, if it still holds the doorbell, and if no session
// before a restart of the server is meant.
func kill(r *row) string {
	return userlock.Kill(r.session, usedBy(r.literal())+"="+num(r.session)+" AND "+num(r.created)+">="+started)
}

// mine is the condition that a row is of grant g, and not condemned.
func (q queries) mine(g sqllock.Grant) string {
	if q.migrated {
		return "token=" + num(g.Token) + " AND lock_acquired=1"
	}
	return "connection_id=" + num(g.Session) + " AND lock_acquired=1"
}

// release removes the row and frees the doorbell in one statement. The IF
// depends on the row, so that RELEASE_LOCK is not evaluated without it.
func (q queries) release(g sqllock.Grant) string {
	return "DELETE FROM " + q.table + " WHERE name=" + text(g.Key) +
		" AND IF(" + q.mine(g) + " AND connection_id=CONNECTION_ID(),RELEASE_LOCK(" + text(g.Key) + "),0)=1"
}

// drop removes the row of a grant over another session.
func (q queries) drop(g sqllock.Grant) string {
	return "DELETE FROM " + q.table + " WHERE name=" + text(g.Key) + " AND " + q.mine(g)
}

// left asks how many microseconds are left of g; there is no row if it is lost.
func (q queries) left(g sqllock.Grant) string {
	return "SELECT " + until + "*1000000-" + micros + " l FROM " + q.table + " WHERE name=" + text(g.Key) +
		" AND " + q.mine(g) + " AND connection_id=IS_USED_LOCK(" + text(g.Key) + ")"
}

// held asks whether the session still holds g, after a release that has changed
// nothing: the row and the doorbell.
func (q queries) held(g sqllock.Grant) string {
	return "SELECT COUNT(*) v FROM " + q.table + " WHERE name=" + text(g.Key) + " AND " + q.mine(g) +
		" AND connection_id=CONNECTION_ID() AND IS_USED_LOCK(" + text(g.Key) + ")=CONNECTION_ID()"
}

// extend tells by its insert id whether it has found the row, since the number
// of rows depends on clientFoundRows where nothing changes.
func (q queries) extend(g sqllock.Grant, ttl int64) string {
	return q.renew(g, "created=UNIX_TIMESTAMP()+0*LAST_INSERT_ID(1),ttl="+num(ttl))
}

// pass tells by its insert id whether it has found the row, too: it is the token.
func (q queries) pass(g sqllock.Grant, ttl, floor int64) string {
	if !q.migrated {
		return q.extend(g, ttl)
	}
	floor = max(floor, g.Token+1)
	return q.renew(g, "created=UNIX_TIMESTAMP(),ttl="+num(ttl)+",token=LAST_INSERT_ID(GREATEST("+micros+","+num(floor)+"))")
}

// renew changes the row of g, if it is held and its time not over.
func (q queries) renew(g sqllock.Grant, set string) string {
	return "UPDATE " + q.table + " SET " + set + " WHERE name=" + text(g.Key) +
		" AND " + q.mine(g) + " AND connection_id=IS_USED_LOCK(" + text(g.Key) + ") AND " + until + ">UNIX_TIMESTAMP()"
}

// watch has a column for each of grants, which may have been made before the table
// was migrated. The table is named once: a hundred subqueries on a MyISAM table open
// a hundred files.
func (q queries) watch(grants []sqllock.Grant) string {
	names, columns := make([]string, len(grants)), make([]string, len(grants))
	for i, g := range grants {
		mine := queries{migrated: g.Token != 0}.mine(g)
		names[i] = text(g.Key)
		columns[i] = "COALESCE(MAX(name=" + names[i] + " AND " + mine + " AND connection_id=IS_USED_LOCK(" + names[i] + ")),0) v"
	}
	return "SELECT " + strings.Join(columns, ",") + " FROM " + q.table +
		" WHERE name IN (" + strings.Join(names, ",") + ") AND " + until + ">UNIX_TIMESTAMP()"
}

// extendAll is extend for several grants.
func (q queries) extendAll(grants []sqllock.Grant, ttl int64) string {
	names, rows := make([]string, len(grants)), make([]string, len(grants))
	for i, g := range grants {
		names[i] = text(g.Key)
		rows[i] = "name=" + names[i] + " AND " + queries{migrated: g.Token != 0}.mine(g) + " AND connection_id=IS_USED_LOCK(" + names[i] + ")"
	}
	return "UPDATE " + q.table + " SET created=UNIX_TIMESTAMP(),ttl=" + num(ttl) + " WHERE name IN (" + strings.Join(names, ",") + ")" +
		" AND " + until + ">UNIX_TIMESTAMP() AND (" + strings.Join(rows, " OR ") + ")"
}

// holders asks for whom there is to see: of one key, or of all rows.
func (q queries) holders(key string) string {
	token, holder := "0", "''"
	if q.migrated {
		token, holder = "COALESCE(r.token,0)", "COALESCE(r.holder,'')"
	}
	columns := "SELECT HEX(CONVERT(r.name USING utf8mb4)) n,r.connection_id,r.created," + until + " e," + until + "*1000000-" + micros + " l," + token + " t," + holder + " h," +
		"COALESCE(" + usedBy("r.name") + "=r.connection_id AND r.created>=" + started + ",0) a"
	process := ",COALESCE(p.user,''),COALESCE(p.host,''),COALESCE(p.db,''),COALESCE(p.command,'')"
	if key == "" {
		return columns + ",0 b" + process + " FROM " + q.table + " r LEFT JOIN information_schema.processlist p ON p.id=r.connection_id" +
			" ORDER BY r.name"
	}
	return columns + ",o.b b" + process + " FROM (SELECT IS_USED_LOCK(" + text(key) + ") AS b) o LEFT JOIN " + q.table + " r ON r.name=" + text(key) +
		" LEFT JOIN information_schema.processlist p ON p.id=COALESCE(r.connection_id,o.b)"
}

// sweep removes what nobody holds.
func (q queries) sweep() string {
	return "DELETE FROM " + q.table + " WHERE (lock_acquired<>0 OR " + until + "<=UNIX_TIMESTAMP())" +
		" AND COALESCE(" + usedBy("name") + "=connection_id,0)=0"
}

// shape asks for the engine of the table and which columns it has, and for one
// that an INSERT of ours would fail at, or get an insert id from.
func shape(schema, name string) string {
	where := " WHERE table_schema=" + schema + " AND table_name=" + text(name)
	columns := " FROM information_schema.columns" + where
	ours := "('name','connection_id','created','ttl','lock_acquired')"
	return "SELECT COALESCE(MAX(engine),''),(SELECT COUNT(*)" + columns + " AND column_name IN " + ours + ")," +
		"(SELECT COUNT(*)" + columns + " AND column_name IN ('token','holder'))," +
		"(SELECT COALESCE(MAX(column_name),'')" + columns + " AND (extra LIKE '%auto_increment%'" +
		" OR is_nullable='NO' AND column_default IS NULL AND extra='' AND column_name NOT IN " + ours + "))," +
		schema + ",VERSION(),HEX(" + kindExpr + ") FROM information_schema.tables" + where
}

// quote returns name, which may have a schema in front, as identifiers, and what
// shape takes.
func quote(name string) (quoted, schema, table string) {
	schema, table, qualified := strings.Cut(name, ".")
	if !qualified {
		return "`" + name + "`", "DATABASE()", name
	}
	return "`" + schema + "`.`" + table + "`", text(schema), table
}
