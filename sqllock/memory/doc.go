// Package memory is a lock backend without a database, for the unit tests of
// applications that use package sqllock. The locks are those of a [Server], an
// imaginary one in the memory of the test:
//
//	server := memory.New()
//	db := server.DB() // in place of sql.Open
//	defer db.Close()
//	locker := sqllock.New(server.Backend()) // in place of mysqlnamed.New()
//
// [Server.Leases] is in place of table.New. A second [Server.DB] stands for a second
// process. [Server.Lose], [Server.Kill] and [Server.Fail] do what goes wrong on real
// servers, and [Server.Waiters] tells when somebody has come to wait.
//
// # What is as on a real server
//
// Both backends pass the suite of package locktest, and a [sqllock.Pool] works on them
// as on any other. Locks live in sessions, and are free when the connection is closed.
// A session that acquires again what it holds gets ErrHeld; waiters are granted the
// lock in the order in which they came; who waits in a cycle gets ErrDeadlock. A
// session that is killed loses all its locks, its transaction can't be committed, and
// a pool drops it. A lock that is asked about, acquired or released while rows of a
// query are open on its conn costs the session.
//
// A lease ends as one of package table: who asks for it after its TTL, or has
// waited for that, ends the session of its holder and takes over, which the observer
// is told (Killed, TakenOver). What a dead session has left behind of a lease is seen
// by Holder until the next one takes it over. TTLs are rounded up to whole seconds;
// tokens are 1, 2, 3 and so on, over all names.
//
// # What is not
//
//   - There is no SQL but SELECT of whole numbers, such as SELECT 1; everything else
//     is an error that says so. The work of an application under test takes another
//     *sql.DB, or is replaced. Package txguard needs a real server: what it asks for
//     is an error here.
//   - Everything happens at once. A killed session has ended when Kill returns, so
//     there is no ErrHolderAlive; there are no silent servers, no privileges, no limit
//     to connections but that of the pool. A wait ends as soon as its ctx does.
//   - Keys are compared byte by byte, as MariaDB's GET_LOCK does. MySQL and the table
//     ignore letter case.
//   - Backend and Leases of one Server exclude each other, as GET_LOCK and the table
//     do; but either takes over from an expired lease, and a lock of one may be
//     released by the other.
//   - Locks exclude within the process only. It is no backend for production.
//
// # Time
//
// TTLs are counted on the monotonic clock. Inside of [testing/synctest.Test] that is
// the clock of the bubble, so a lease of an hour is over at once, when everybody
// waits. The Server and its pools have to be made there, and the pools closed. One
// goroutine may use a conn at a time there: who has to wait for a Lock on the same
// *sql.Conn waits on a mutex, which stops that clock.
package memory
