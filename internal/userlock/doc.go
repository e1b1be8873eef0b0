// Package userlock is what the backends on the user-level locks of MySQL and
// MariaDB have in common: statements with a bound of their own, the wait in
// GET_LOCK that can be ended without ending its session, what errors of the
// server mean for a lock, and a look at what kind of server it is.
//
// The name of a lock stands in a statement as an expression, as [Literal] makes
// it.
package userlock
