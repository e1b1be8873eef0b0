// Package laravel is the lock backend on the table of Laravel's database cache store,
// cache_locks of its DatabaseLock (Cache::lock, withoutOverlapping, onOneServer, unique jobs), on
// MySQL, MariaDB and PostgreSQL: processes in PHP and in Go exclude each other. The drivers are
// github.com/go-sql-driver/mysql and github.com/jackc/pgx/v5/stdlib.
//
// # What PHP does
//
//	table    cache_locks(key varchar(255) primary key, owner varchar(255), expiration int)
//	key      the prefix of the cache (cache.prefix), and the name
//	owner    16 random letters
//	clock    time() of the host that PHP runs on
//	live     while expiration > clock
//	acquire  INSERT; after any error UPDATE … WHERE key AND (owner is mine OR expiration <= clock), and the number of
//	         rows; 2 times in 100 DELETE WHERE expiration <= clock. A lock of 0 seconds is one of a day
//	block    acquire every 250 ms
//	release  SELECT the row; DELETE WHERE key AND owner. forceRelease: DELETE WHERE key
//
// # What Go does
//
// The same by the server's clock, with an owner for each grant, "host/pid program" and some random
// letters, and with a look after each statement that writes, which is what counts:
//
//	look     SELECT the row of key, and what is left of it
//	claim    INSERT, or UPDATE WHERE its time is over; on PostgreSQL one INSERT … ON CONFLICT; then look
//	extend   UPDATE WHERE key AND owner is mine AND its time is not over; then look
//	release  look; DELETE WHERE key AND owner
//	check    look; in a transaction SELECT … FOR UPDATE WHERE owner is mine and its time not over
//
// The clocks of PHP's hosts and of the server may be a second apart, or as much as
// [WithClockSkew] says: a lock of ours is written for as much longer, so that nobody takes it
// before the handle says that it is over, and one of others is taken as much later. TTLs are whole
// seconds, rounded up.
//
// How it waits, what can happen, what goes for transactions and package txguard, and which servers
// are refused, is as the documentation of package interop/symfony says; the row is the lock, and
// outlives its session.
//
// # Limits
//
// Locks have no fencing tokens: Token is 0. The collation that Laravel gives its tables on MySQL
// ignores letter case and spaces at the end. A PHP process that fails to acquire in a transaction of
// its own keeps the row locked until that ends, on MySQL: what has to write the row then fails after
// four seconds. The column ends in 2038.
package laravel
