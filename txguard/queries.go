package txguard

import (
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/sqllock/go-sqllock/internal/userlock"
)

func num(n int64) string { return strconv.FormatInt(n, 10) }

// upsert writes a row of key, or the assignments to the one that is there; one of
// them gives the number that goes to the client as the insert id.
func (f *Fence) upsert(key, token, seq, commits, assignments string) string {
	return "INSERT INTO " + f.table + " (name,token,seq,commits,session,updated) VALUES (" + userlock.Text(key) + "," + token + "," + seq + "," + commits +
		",CONNECTION_ID(),UNIX_TIMESTAMP()) ON DUPLICATE KEY UPDATE " + assignments + ",session=CONNECTION_ID(),updated=UNIX_TIMESTAMP()"
}

// mintQuery makes a token greater than every one of key before. The clock is for
// rows that have been swept.
func (f *Fence) mintQuery(key string) string {
	return f.upsert(key, "LAST_INSERT_ID("+userlock.Micros+")", "0", "''", "token=LAST_INSERT_ID(GREATEST(token+1,"+userlock.Micros+"))")
}

// raiseQuery returns the greatest token that has been raised, this one included.
func (f *Fence) raiseQuery(key string, token int64) string {
	return f.upsert(key, "LAST_INSERT_ID("+num(token)+")", "0", "''", "token=LAST_INSERT_ID(GREATEST(token,"+num(token)+"))")
}

// place is a number of the database that a statement runs on, in 32 bits. It keeps a
// row of another database, or of another server, from being taken for the one that
// evidence was written to.
func (f *Fence) place() string {
	if strings.Contains(f.name, ".") {
		return "CRC32(CONCAT_WS('/',@@hostname,@@port))"
	}
	return "CRC32(CONCAT_WS('/',@@hostname,@@port,DATABASE()))"
}

// numbered is a number for the column seq, which goes to the client as the upper half
// of the insert id, and the place as the lower.
func (f *Fence) numbered(seq string) string {
	return "LAST_INSERT_ID((" + seq + "<<32)|" + f.place() + ")>>32"
}

// added is the assignment that adds the id of a commit to a row.
func (f *Fence) added(id []byte) string {
	return "seq=" + f.numbered("(seq+1)") + ",commits=LEFT(CONCAT(X'" + hex.EncodeToString(id) + "',commits)," + num(kept*idSize) + ")"
}

// noteQuery writes evidence, whatever the token.
func (f *Fence) noteQuery(key string, id []byte) string {
	return f.upsert(key, "0", f.numbered("1"), "X'"+hex.EncodeToString(id)+"'", f.added(id))
}

// passQuery writes evidence if no greater token has been raised, and locks the row
// until the transaction ends. There is no insert id if it finds no row.
func (f *Fence) passQuery(key string, token int64, id []byte) string {
	return "UPDATE " + f.table + " SET " + f.added(id) + ",session=CONNECTION_ID(),updated=UNIX_TIMESTAMP() WHERE name=" + userlock.Text(key) + " AND token=" + num(token)
}

// lookQuery reads what has been committed, after waiting for what is about to be.
func (f *Fence) lookQuery(key string) string {
	return "SELECT seq,commits," + f.place() + " p FROM " + f.table + " WHERE name=" + userlock.Text(key) + " FOR UPDATE"
}

// peekQuery fails at once if somebody has locked the row. It changes nothing.
func (f *Fence) peekQuery(key string) string {
	return "SELECT token FROM " + f.table + " WHERE name=" + userlock.Text(key) + " FOR UPDATE NOWAIT"
}

// sweepQuery removes rows by the server's clock. The first condition is for
// sql_safe_updates.
func (f *Fence) sweepQuery(seconds int64) string {
	return "DELETE FROM " + f.table + " WHERE name>='' AND updated<UNIX_TIMESTAMP()-" + num(seconds)
}
