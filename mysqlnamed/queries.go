package mysqlnamed

import "github.com/sqllock/go-sqllock/internal/userlock"

// tryQuery also brings the session's id and what its kind is told by. The short
// aliases keep the expressions out of the answer's column names.
func tryQuery(key string) string {
	return "SELECT " + userlock.GetLock(userlock.Literal(key), "0") + " v,CONNECTION_ID() c,@@hostname h,@@port p,@@read_only r"
}

func checkQuery(key string) string {
	return "SELECT IS_USED_LOCK(" + userlock.Literal(key) + ")=CONNECTION_ID() v"
}

// holderQuery asks for the lock and for its session in one statement, so that
// an id is not looked up after it has changed hands. A user without the PROCESS
// privilege sees its own sessions only; of others it gets the id.
func holderQuery(key string) string {
	return "SELECT h.id,COALESCE(p.user,''),COALESCE(p.host,''),COALESCE(p.db,''),COALESCE(p.command,'')," +
		"UNIX_TIMESTAMP()-p.time FROM (SELECT IS_USED_LOCK(" + userlock.Literal(key) + ") AS id) h" +
		" LEFT JOIN information_schema.processlist p ON p.id=h.id"
}
