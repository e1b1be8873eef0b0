package txguard

import (
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/sqllock/go-sqllock/internal/userlock"
)

func num(n int64) string { return strconv.FormatInt(n, 10) }

// mySQLTable is a fence table, quoted.
type mySQLTable string

func (mySQL) table(name string) mySQLTable {
	return mySQLTable("`" + strings.ReplaceAll(name, ".", "`.`") + "`")
}

// upsert writes a row of key, or the assignments to the one that is there; one of
// them gives the number that goes to the client as the insert id.
func (t mySQLTable) upsert(key, token, seq, commits, assignments string) string {
	return "INSERT INTO " + string(t) + " (name,token,seq,commits,session,updated) VALUES (" + userlock.Text(key) + "," + token + "," + seq + "," + commits +
		",CONNECTION_ID(),UNIX_TIMESTAMP()) ON DUPLICATE KEY UPDATE " + assignments + ",session=CONNECTION_ID(),updated=UNIX_TIMESTAMP()"
}

// mintQuery makes a token greater than every one of key before. The clock is for
// rows that have been swept.
func (t mySQLTable) mintQuery(key string) string {
	return t.upsert(key, "LAST_INSERT_ID("+userlock.Micros+")", "0", "''", "token=LAST_INSERT_ID(GREATEST(token+1,"+userlock.Micros+"))")
}

// raiseQuery returns the greatest token that has been raised, this one included.
func (t mySQLTable) raiseQuery(key string, token int64) string {
	return t.upsert(key, "LAST_INSERT_ID("+num(token)+")", "0", "''", "token=LAST_INSERT_ID(GREATEST(token,"+num(token)+"))")
}

// place is a number of the database that a statement runs on, in 32 bits. It keeps a
// row of another database, or of another server, from being taken for the one that
// evidence was written to.
func (t mySQLTable) place() string {
	if strings.Contains(string(t), ".") {
		return "CRC32(CONCAT_WS('/',@@hostname,@@port))"
	}
	return "CRC32(CONCAT_WS('/',@@hostname,@@port,DATABASE()))"
}

// numbered is a number for the column seq, which goes to the client as the upper half
// of the insert id, and the place as the lower.
func (t mySQLTable) numbered(seq string) string {
	return "LAST_INSERT_ID((" + seq + "<<32)|" + t.place() + ")>>32"
}

// added is the assignment that adds the id of a commit to a row.
func (t mySQLTable) added(id []byte) string {
	return "seq=" + t.numbered("(seq+1)") + ",commits=LEFT(CONCAT(X'" + hex.EncodeToString(id) + "',commits)," + num(kept*idSize) + ")"
}

// noteQuery writes evidence, whatever the token.
func (t mySQLTable) noteQuery(key string, id []byte) string {
	return t.upsert(key, "0", t.numbered("1"), "X'"+hex.EncodeToString(id)+"'", t.added(id))
}

// passQuery writes evidence if no greater token has been raised, and locks the row
// until the transaction ends. There is no insert id if it finds no row.
func (t mySQLTable) passQuery(key string, token int64, id []byte) string {
	return "UPDATE " + string(t) + " SET " + t.added(id) + ",session=CONNECTION_ID(),updated=UNIX_TIMESTAMP() WHERE name=" + userlock.Text(key) + " AND token=" + num(token)
}

// lookQuery reads what has been committed, after waiting for what is about to be.
func (t mySQLTable) lookQuery(key string) string {
	return "SELECT seq,commits," + t.place() + " p FROM " + string(t) + " WHERE name=" + userlock.Text(key) + " FOR UPDATE"
}

// peekQuery fails at once if somebody has locked the row. It changes nothing.
func (t mySQLTable) peekQuery(key string) string {
	return "SELECT token FROM " + string(t) + " WHERE name=" + userlock.Text(key) + " FOR UPDATE NOWAIT"
}

// sweepQuery removes rows by the server's clock. The first condition is for
// sql_safe_updates.
func (t mySQLTable) sweepQuery(seconds int64) string {
	return "DELETE FROM " + string(t) + " WHERE name>='' AND updated<UNIX_TIMESTAMP()-" + num(seconds)
}
