// Package rowlock is what the backends on the lock tables of other ecosystems have in
// common. There the row alone is the lock: whose token it has holds the name until the time
// in it is over. So a lock outlives its session, and waiting is asking again.
//
// Statements on rows are each a transaction of their own, on the session of the lock or,
// where that is in a transaction of the caller's, over the pool. The verdict is what a
// SELECT finds after them, never a number of rows that were changed. The only statement that
// joins a transaction is the locking read of a Check in it.
package rowlock
