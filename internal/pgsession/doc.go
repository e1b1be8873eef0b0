// Package pgsession is what the backends on the advisory locks of PostgreSQL have
// in common: statements with a bound of their own on the session under a *sql.Conn
// of github.com/jackc/pgx/v5/stdlib, a wait that can be ended without ending the
// session, what SQLSTATEs mean for a lock, and a look at what kind of server it is.
//
// Statements go by the simple protocol, several of them in one message if need be,
// which makes one implicit transaction of them: one round trip whatever
// default_query_exec_mode is, and no prepared statement that a pooler could lose.
package pgsession
