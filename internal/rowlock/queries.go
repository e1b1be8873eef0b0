package rowlock

import (
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"github.com/sqllock/go-sqllock/internal/pgsession"
	"github.com/sqllock/go-sqllock/internal/userlock"
)

func num[T int | int64](n T) string { return strconv.FormatInt(int64(n), 10) }

// queries makes the statements of a format on one kind of server. The row is called r.
type queries struct {
	f                           *Format
	pg                          bool
	table, id, token, until, at string // quoted
	skew                        int64  // in microseconds
}

func newQueries(f *Format, pg bool) *queries {
	q := &queries{f: f, pg: pg, skew: f.Skew.Microseconds()}
	if pg && f.Rounds {
		q.skew += (time.Second / 2).Microseconds()
	}
	mark := "`"
	if pg {
		mark = `"`
	}
	quote := func(name string) string { return mark + strings.ReplaceAll(name, ".", mark+"."+mark) + mark }
	q.table, q.id, q.token, q.until = quote(f.Table), quote(f.ID.Name), quote(f.Token.Name), quote(f.Until.Name)
	if f.At.Name != "" {
		q.at = quote(f.At.Name)
	}
	return q
}

// text is a literal that needs no placeholder, and means the same under every setting.
func (q *queries) text(s string) string {
	if q.pg {
		return pgsession.Text(s)
	}
	return "_utf8mb4 X'" + hex.EncodeToString([]byte(s)) + "'"
}

// micros is the server's clock. On PostgreSQL now() would be that of the beginning of a
// transaction.
func (q *queries) micros() string {
	if q.pg {
		return "floor(extract(epoch FROM clock_timestamp())*1000000)::bigint"
	}
	return userlock.Micros
}

// utc is the clock as formats with timestamps have it.
func (q *queries) utc() string {
	if q.pg {
		return "timezone('utc',clock_timestamp())"
	}
	return "UTC_TIMESTAMP(6)"
}

// left is how many microseconds it is until one of the others may take the row, whose
// clock may be ahead of the server's.
func (q *queries) left() string {
	skew := "-" + num(q.skew) + ")"
	switch {
	case q.f.Seconds && q.pg:
		return "(r." + q.until + "::bigint*1000000-" + q.micros() + skew
	case q.f.Seconds:
		return "(CAST(r." + q.until + " AS SIGNED)*1000000-" + q.micros() + skew
	case q.pg:
		return "(floor(extract(epoch FROM r." + q.until + "-" + q.utc() + ")*1000000)::bigint" + skew
	}
	return "(TIMESTAMPDIFF(MICROSECOND," + q.utc() + ",r." + q.until + ")" + skew
}

func (q *queries) live() string { return q.left() + ">0" }

// over is that we may take the row, whose holder's clock may have been behind when it was
// written.
func (q *queries) over() string { return q.left() + "<=" + num(q.grace()) }

func (q *queries) grace() int64 { return -2 * q.skew }

// end is the value for a lock of ttl seconds. It is up to a second later than that, so that
// no rounding, of a column either, makes it earlier, and no later than what the columns take.
func (q *queries) end(ttl int64) string {
	switch {
	case q.f.Seconds && q.pg:
		return "least((" + q.micros() + "+" + num(q.skew+999999) + ")/1000000+" + num(ttl) + ",2147483647)"
	case q.f.Seconds:
		return "LEAST((" + q.micros() + "+" + num(q.skew+999999) + ") DIV 1000000+" + num(ttl) + ",2147483647)"
	case q.pg:
		return q.utc() + "+make_interval(secs=>" + num(ttl+1) + ")+make_interval(secs=>" + num(q.skew) + "/1000000.0)"
	}
	return "LEAST(TIMESTAMPADD(MICROSECOND," + num((ttl+1)*1000000+q.skew) + "," + q.utc() + "),TIMESTAMP'2038-01-18 00:00:00')"
}

// past is the value for a lock that is free by every clock: a whole second, so that no
// rounding of a column makes it later.
func (q *queries) past() string {
	if q.pg {
		return "least(" + q.until + ",date_trunc('second'," + q.utc() + ")-make_interval(secs=>" + num(q.skew) + "/1000000.0))"
	}
	return "LEAST(" + q.until + ",TIMESTAMPADD(MICROSECOND,-" + num(q.skew) + ",UTC_TIMESTAMP()))"
}

// isID and mine are for statements that call the row r.
func (q *queries) isID(id string) string { return "r." + q.id + "=" + q.text(id) }

func (q *queries) mine(id, token string) string {
	return q.isID(id) + " AND r." + q.token + "=" + q.text(token)
}

// look asks for the row of id, and whether the session is what it has to be.
func (q *queries) look(id string) string {
	kind, odd := "HEX(CONCAT_WS('/',@@hostname,@@port,DATABASE()))", "@@SESSION.time_zone<>@@GLOBAL.time_zone"
	if q.pg {
		kind, odd = "NULL", "pg_typeof(r."+q.until+")::text<>'timestamp without time zone'"
	}
	if q.f.Seconds {
		odd = "NULL"
	}
	return "SELECT r." + q.token + "," + q.left() + " l," + kind + " k," + odd + " o FROM (SELECT 1 x) o LEFT JOIN " + q.table + " r ON " + q.isID(id)
}

// claim makes the row, or takes the one that is there, if its time is over.
func (q *queries) claim(id, token string, ttl int64, there bool) string {
	if there && !q.pg {
		return "UPDATE " + q.table + " r SET " + q.take(token, ttl) + " WHERE " + q.isID(id) + " AND " + q.over()
	}
	names, values := q.id+","+q.token+","+q.until, q.text(id)+","+q.text(token)+","+q.end(ttl)
	if q.at != "" {
		names, values = names+","+q.at, values+","+q.utc()
	}
	if !q.pg {
		return "INSERT INTO " + q.table + " (" + names + ") VALUES (" + values + ")"
	}
	return "INSERT INTO " + q.table + " AS r (" + names + ") VALUES (" + values + ") ON CONFLICT (" + q.id + ") DO UPDATE SET " +
		q.take(token, ttl) + " WHERE " + q.over()
}

// take is the assignments that make a row that of a new grant.
func (q *queries) take(token string, ttl int64) string {
	set := q.token + "=" + q.text(token) + "," + q.until + "=" + q.end(ttl)
	if q.at != "" {
		set += "," + q.at + "=" + q.utc()
	}
	return set
}

// extend and pass find a row whose time is not over: what has ended stays ended.
func (q *queries) extend(id, token string, ttl int64) string {
	return "UPDATE " + q.table + " AS r SET " + q.until + "=" + q.end(ttl) + " WHERE " + q.mine(id, token) + " AND " + q.live()
}

func (q *queries) pass(id, token, next string, ttl int64) string {
	return "UPDATE " + q.table + " AS r SET " + q.take(next, ttl) + " WHERE " + q.mine(id, token) + " AND " + q.live()
}

// free frees the row of a grant, and unlock that of anybody.
func (q *queries) free(id, token string) string { return q.unlock(q.match(id, token)) }

func (q *queries) match(id, token string) string {
	return q.id + "=" + q.text(id) + " AND " + q.token + "=" + q.text(token)
}

func (q *queries) unlock(where string) string {
	if q.f.Keeps {
		return "UPDATE " + q.table + " SET " + q.until + "=" + q.past() + " WHERE " + where
	}
	return "DELETE FROM " + q.table + " WHERE " + where
}

// guard reads the row of a grant, and locks it until the transaction ends, so that nobody
// takes it before that. It does not wait: in MySQL it fails if somebody else has locked the
// row, in PostgreSQL it finds none, since an error would be the end of the transaction.
func (q *queries) guard(id, token string) string {
	how := " NOWAIT"
	if q.pg {
		how = " SKIP LOCKED"
	}
	return "SELECT " + q.left() + " l FROM " + q.table + " r WHERE " + q.mine(id, token) + " AND " + q.live() + " FOR UPDATE" + how
}

func (q *queries) still(id, token string) string {
	return "SELECT " + q.left() + " l FROM " + q.table + " r WHERE " + q.mine(id, token) + " AND " + q.live()
}

// holders are those of one id, or of all rows.
func (q *queries) holders(id string) string {
	name, since := "HEX(CONVERT(r."+q.id+" USING utf8mb4))", "NULL"
	if q.pg {
		name = "encode(convert_to(r." + q.id + ",'UTF8'),'hex')"
	}
	switch {
	case q.at != "" && q.pg:
		since = "floor(extract(epoch FROM r." + q.at + ")*1000000)::bigint"
	case q.at != "":
		since = "TIMESTAMPDIFF(MICROSECOND,TIMESTAMP'1970-01-01 00:00:00',r." + q.at + ")"
	}
	where := q.live()
	if id != "" {
		where = q.isID(id) + " AND " + where
	}
	return "SELECT " + name + " n,r." + q.token + "," + q.left() + " l," + q.micros() + "+" + q.left() + " e," + since + " s FROM " + q.table +
		" r WHERE " + where + " ORDER BY r." + q.id
}

// part is what a statement about several grants says of one.
type part struct{ id, token string }

// watch has a column for each grant on MySQL, and the numbers of those that are held on
// PostgreSQL.
func (q *queries) watch(parts []part) string {
	ids, each := make([]string, len(parts)), make([]string, len(parts))
	for i, p := range parts {
		ids[i] = q.text(p.id)
		if q.pg {
			each[i] = "('" + num(i) + "'," + ids[i] + "," + q.text(p.token) + ")"
		} else {
			each[i] = "COALESCE(MAX(" + q.mine(p.id, p.token) + "),0) v"
		}
	}
	if q.pg {
		return "SELECT string_agg(v.n,',') FROM (VALUES " + strings.Join(each, ",") + ") v(n,i,t) JOIN " + q.table + " r ON r." + q.id +
			"=v.i AND r." + q.token + "=v.t AND " + q.live()
	}
	return "SELECT " + strings.Join(each, ",") + " FROM " + q.table + " r WHERE r." + q.id + " IN (" + strings.Join(ids, ",") + ") AND " + q.live()
}

func (q *queries) extendAll(parts []part, ttl int64) string {
	ids, each := make([]string, len(parts)), make([]string, len(parts))
	for i, p := range parts {
		ids[i], each[i] = q.text(p.id), "("+q.mine(p.id, p.token)+")"
	}
	return "UPDATE " + q.table + " AS r SET " + q.until + "=" + q.end(ttl) + " WHERE r." + q.id + " IN (" + strings.Join(ids, ",") + ") AND " +
		q.live() + " AND (" + strings.Join(each, " OR ") + ")"
}

// shape asks MySQL for the engine of the table, for an index that keeps a second row of one
// id out, and for the type of the end.
func (q *queries) shape() string {
	schema, name := "DATABASE()", q.f.Table
	if s, n, qualified := strings.Cut(q.f.Table, "."); qualified {
		schema, name = q.text(s), n
	}
	where := " WHERE table_schema=" + schema + " AND table_name=" + q.text(name)
	return "SELECT COALESCE(MAX(engine),'') e,(SELECT COUNT(*) FROM (SELECT index_name FROM information_schema.statistics" + where +
		" AND non_unique=0 GROUP BY index_name HAVING COUNT(*)=1 AND MAX(column_name)=" + q.text(q.f.ID.Name) + ") u) u," +
		"(SELECT COALESCE(MAX(data_type),'') FROM information_schema.columns" + where + " AND column_name=" + q.text(q.f.Until.Name) + ") t" +
		" FROM information_schema.tables" + where
}

// create is the statement that makes the table.
func (q *queries) create() string {
	lines := []string{}
	for _, c := range []struct {
		name string
		Column
		end string
	}{{q.id, q.f.ID, " NOT NULL PRIMARY KEY"}, {q.token, q.f.Token, " NOT NULL"}, {q.until, q.f.Until, " NOT NULL"}, {q.at, q.f.At, " NOT NULL"}} {
		switch {
		case c.name == "":
		case q.pg:
			lines = append(lines, c.name+" "+c.Postgres+c.end)
		default:
			lines = append(lines, c.name+" "+c.MySQL+c.end)
		}
	}
	tail := q.f.Tail
	if q.pg {
		tail = ""
	}
	return "CREATE TABLE " + q.table + " (" + strings.Join(lines, ", ") + ")" + tail
}
