// Package torture shows on a history what package txguard promises: that guarded
// work is committed only while its lock is held, and that nobody else is granted
// the lock before that work is decided.
//
// Processes of the operating system, each with a pool of its own through a TCP
// proxy that can misbehave, book money between accounts: read, think, write what
// was computed. Only the lock of a shard keeps two of them from computing on the
// same balances, since nothing is read FOR UPDATE and no key of the ledger forbids
// that two of its rows have the same number. Meanwhile processes are killed, and
// stopped for longer than their lock lives, sessions are killed, connections reset,
// some of them at COMMIT, and the server is crashed.
//
// What is left is checked exactly: each transaction writes a row of the ledger with
// the number that it gave itself, its fencing token and the balances before and
// after. In the order of the numbers the rows have to form one chain, from the
// opening balances to the closing ones; tokens must not fall in it; and it has to
// hold what the processes were told was committed, and nothing that they were told
// was rolled back. A chain of numbered reads and writes is a history whose only
// possible order is known, so no search for one (as porcupine does it) is needed.
//
// The control is the same with the guard switched off, and has to fail the check.
package torture
