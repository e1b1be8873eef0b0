package txguard

import (
	"encoding/hex"
	"strings"

	"github.com/sqllock/go-sqllock/internal/pgsession"
)

// postgresTable is a fence table, quoted.
type postgresTable string

func (postgres) table(name string) postgresTable {
	return postgresTable(`"` + strings.ReplaceAll(name, ".", `"."`) + `"`)
}

const (
	// alone begins what is no part of a transaction of the caller's. Statements that are sent
	// together are one transaction, and with READ COMMITTED each of them sees what has
	// been committed before it, after any wait. What the session's default is, is no matter.
	alone = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED,READ WRITE;"

	// briefly has the statements after it wait no longer for a lock.
	briefly = "SET LOCAL lock_timeout='500ms';"

	pgMicros  = "(extract(epoch FROM clock_timestamp())*1000000)::bigint"
	pgSeconds = "floor(extract(epoch FROM clock_timestamp()))::bigint"

	// pgPlace is a number of the table that a row f is in, in 32 bits: it tells servers,
	// databases and schemas apart.
	pgPlace = "hashtext(concat_ws('/',(SELECT system_identifier FROM pg_control_system()),current_database(),f.tableoid))::bigint&4294967295"
)

// insert writes a row of key, unless there is one.
func (t postgresTable) insert(key, token, seq, commits string) string {
	return "INSERT INTO " + string(t) + " AS f (name,token,seq,commits,session,updated) VALUES (" + pgsession.Text(key) + "," + token + "," + seq + "," + commits +
		",pg_backend_pid()," + pgSeconds + ") ON CONFLICT (name) DO "
}

// upsert writes a row of key, or the assignments to the one that is there. It never fails because
// of the key, which would cost the caller's transaction.
func (t postgresTable) upsert(key, token, seq, commits, assignments string) string {
	return t.insert(key, token, seq, commits) + "UPDATE SET " + assignments + ",session=EXCLUDED.session,updated=EXCLUDED.updated"
}

// mintQuery makes a token greater than every one of key before. The clock is for
// rows that have been swept.
func (t postgresTable) mintQuery(key string) string {
	return alone + briefly + t.upsert(key, pgMicros, "0", "''", "token=greatest(f.token+1,EXCLUDED.token)") + " RETURNING token"
}

// raiseQuery answers with the greatest token that has been raised, this one included. It
// waits for the row, and writes it only for a greater token, so that transactions with a
// snapshot are not failed for nothing.
func (t postgresTable) raiseQuery(key string, token int64) string {
	return alone + t.upsert(key, num(token), "0", "''", "token=EXCLUDED.token") + " WHERE f.token<EXCLUDED.token;" + t.token(key)
}

func (t postgresTable) token(key string) string {
	return "SELECT token FROM " + string(t) + " WHERE name=" + pgsession.Text(key)
}

func (t postgresTable) tokenQuery(key string) string { return alone + t.token(key) }

// bytea is a literal whatever standard_conforming_strings is.
func bytea(id []byte) string { return "decode('" + hex.EncodeToString(id) + "','hex')" }

// added is the assignment that adds the id of a commit to a row.
func added(id []byte) string {
	return "seq=f.seq+1,commits=substring(" + bytea(id) + "||f.commits from 1 for " + num(kept*idSize) + ")"
}

// noteQuery writes evidence, whatever the token.
func (t postgresTable) noteQuery(key string, id []byte) string {
	return t.upsert(key, "0", "1", bytea(id), added(id)) + " RETURNING seq," + pgPlace
}

// passQuery writes evidence if no greater token has been raised, and locks the row
// until the transaction ends. There is no answer if it finds no row.
func (t postgresTable) passQuery(key string, token int64, id []byte) string {
	return "UPDATE " + string(t) + " AS f SET " + added(id) + ",session=pg_backend_pid(),updated=" + pgSeconds +
		" WHERE name=" + pgsession.Text(key) + " AND token=" + num(token) + " RETURNING seq," + pgPlace
}

// lookQuery reads what has been committed, after waiting for what is about to be. The
// INSERT waits for whoever has inserted or changed the row; that it waits for a change
// is not documented, so the SELECT does as well.
func (t postgresTable) lookQuery(key string) string {
	return "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;" + t.insert(key, "0", "0", "''") + "NOTHING;" +
		"SELECT seq,encode(commits,'hex')," + pgPlace + " FROM " + string(t) + " AS f WHERE name=" + pgsession.Text(key) + " FOR UPDATE;ROLLBACK"
}

// sweepQuery removes rows by the server's clock, and answers with their number.
func (t postgresTable) sweepQuery(seconds int64) string {
	return alone + "WITH swept AS (DELETE FROM " + string(t) + " WHERE updated<" + pgSeconds + "-" + num(seconds) + " RETURNING 1) SELECT count(*) FROM swept"
}
