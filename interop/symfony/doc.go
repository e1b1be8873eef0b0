// Package symfony is the lock backend on the table of Symfony's lock component, lock_keys of
// its PdoStore and DoctrineDbalStore, on MySQL, MariaDB and PostgreSQL: processes in PHP and
// in Go exclude each other. The drivers are github.com/go-sql-driver/mysql and
// github.com/jackc/pgx/v5/stdlib.
//
// Glueful's database store is a PdoStore, with "glueful_lock_" before each name:
// WithPrefix("glueful_lock_"). What its configuration calls table, id_col, token_col and
// expiration_col PdoStore does not read, so its table is lock_keys, too.
//
// # What PHP does
//
//	table    lock_keys(key_id varchar(64) primary key, key_token varchar(44), key_expiration int unsigned)
//	key_id   the SHA-256 of the name, in hex
//	token    base64 of 32 random bytes
//	clock    UNIX_TIMESTAMP() on MySQL, CAST(EXTRACT(epoch FROM NOW()) AS INT) on PostgreSQL, which rounds to the
//	         nearest second: it is up to half a second ahead, or behind
//	live     while key_expiration > clock
//	save     INSERT with 300 s (initialTtl); after any error, UPDATE … WHERE key_id AND (key_token is mine
//	         OR key_expiration <= clock); then the same UPDATE with the TTL of the lock
//	refresh  that UPDATE
//	release  DELETE WHERE key_id AND key_token
//
// # What Go does
//
//	look     SELECT the row of key_id, and what is left of it
//	claim    INSERT, or UPDATE WHERE its time is over; on PostgreSQL one INSERT … ON CONFLICT; then look
//	extend   UPDATE WHERE key_id AND key_token is mine AND its time is not over; then look
//	release  look; DELETE WHERE key_id AND key_token
//	check    look; in a transaction SELECT … FOR UPDATE WHERE key_token is mine and its time not over
//
// Acquire is look and claim, where the row is not somebody's; a claim writes the whole TTL at
// once, so no crash leaves a row of 300 s. What counts is the look after a claim, never a
// number of rows. On PostgreSQL each line is one message, on MySQL the statements between
// semicolons, and for those that write a SET before and after, which has them wait four
// seconds at most for a row that somebody has locked.
//
// Who waits looks again after 10 to 250 ms, and when the time of the row is over. There is no
// queue: who comes later may be granted the lock first.
//
// TTLs are whole seconds, rounded up, and last up to a second longer (on PostgreSQL two). By the
// server's clock alone; what the handle says is a lower bound by every clock that takes part.
//
// # What can happen
//
//   - The session of a lock ends: the row is still there, and so is the lock, until its TTL is
//     over. With [WithPool] the handle goes on: it can be asked about, extended and released, in a
//     Pool, too. Without, a release returns ErrUnknown, and Check does until the TTL is over, then ErrLost.
//   - The process dies: its lock is free when its TTL is over, not before. Take a short one,
//     and extend it (sqllock.KeepAlive in a Pool).
//   - The answer to a claim is lost: the row is removed over the pool. Without one, or if the
//     server runs it still later, it ends with its TTL.
//   - The time of a lock is over: Check and Extend say ErrLost, even if nobody has taken it.
//     Its session is not ended, and a transaction on it not rolled back, which package txguard
//     is for.
//   - Somebody has locked the row, in a transaction that has written it: a claim is busy, what
//     else there is fails after four seconds. The session is unharmed.
//
// # Transactions
//
// A row that is written in a transaction of the caller's would not be seen by others. So while
// there is one on the session, everything goes over the pool of [WithPool]. Without one, Acquire,
// Check and Extend return ErrInTransaction, and a Release costs the session. A session on which
// autocommit is off is always in one.
//
// For package txguard a Check in a transaction locks the row, if it is that of the grant and its
// time is not over: nobody takes it before the commit, and a holder that is too late commits
// nothing. In REPEATABLE READ and SERIALIZABLE on PostgreSQL the row must not have been extended
// since the transaction's snapshot: the commit is refused, and the lock still held.
//
// # Limits
//
// Locks can't be shared, and have no fencing tokens: Token is 0 (txguard makes its own). Nothing
// in the table says who holds a lock. Read-only servers, Galera, groups with several primaries
// and tables that are not of InnoDB are refused. On MySQL and MariaDB the clock of the session must
// not be set (SET timestamp). Of [sqllock.Key] names that are not 1 to 64
// printable ASCII characters become others, which PHP does not know: see [WithName]. The columns
// end in 2038, or 2106. The table is PHP's: nothing here makes or changes it.
package symfony
