// Package shedlock is the lock backend on the table of ShedLock, as its JDBC providers have it
// with usingDbTime, on MySQL, MariaDB and PostgreSQL: scheduled jobs in Java and in Go exclude
// each other. The drivers are github.com/go-sql-driver/mysql and
// github.com/jackc/pgx/v5/stdlib.
//
// # What Java does
//
//	table    shedlock(name varchar(64) primary key, lock_until, locked_at, locked_by varchar(255)), the times
//	         timestamp(3) on MySQL, and timestamp without time zone on PostgreSQL, both in UTC
//	clock    UTC_TIMESTAMP(3), timezone('utc', CURRENT_TIMESTAMP); without usingDbTime that of the host
//	live     while lock_until > clock
//	lock     INSERT IGNORE, or ON CONFLICT DO UPDATE, once; then UPDATE WHERE name AND lock_until <= clock
//	extend   UPDATE lock_until WHERE name AND locked_by AND lock_until > clock
//	unlock   UPDATE lock_until = clock, or locked_at + lockAtLeastFor if that is later, WHERE name AND
//	         locked_by (a host's name); without usingDbTime WHERE name alone
//
// The row stays. A process that knows it to be there only updates it, so nobody may delete it.
//
// # What Go does
//
// The same, with a locked_by of its own for each grant, "host/pid program" and some random
// letters, and with a look after each statement that writes, which is what counts:
//
//	look     SELECT the row of name, and what is left of it
//	claim    INSERT, or UPDATE WHERE its time is over; on PostgreSQL one INSERT … ON CONFLICT; then look
//	extend   UPDATE WHERE name AND locked_by is mine AND its time is not over; then look
//	release  look; UPDATE lock_until WHERE name AND locked_by: to the clock
//	check    look; in a transaction SELECT … FOR UPDATE WHERE locked_by is mine and its time not over
//
// TTLs are whole seconds, rounded up, and last a second longer. How it waits, what can happen, what
// goes for transactions and package txguard, and which servers are refused, is as the
// documentation of package interop/symfony says; the row is the lock, and outlives its session.
//
// # Limits
//
// Locks have no fencing tokens: Token is 0. There is no lockAtLeastFor; a Pool has sqllock.AtLeast.
// A lock_until of type TIMESTAMP in MySQL depends on the time zone of the session that writes it:
// a session whose time_zone is not the server's is refused, and on PostgreSQL a column with time
// zone. In a time zone with summer time there is an hour each spring that such a column can't hold:
// for locks that would end in it the server has an error, for Java, too. A row that is unlocked
// by its name alone is a lock that is lost: Check says so. Columns of MySQL end in 2038.
package shedlock
