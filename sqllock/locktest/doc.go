// Package locktest is the conformance suite of lock backends: what the guarantees
// of sqllock mean, played on a real server. A backend passes it by
//
//	func TestConformance(t *testing.T) {
//		locktest.Run(t, locktest.Config{
//			Backend: mybackend.New(),
//			Open:    func(t *testing.T) *sql.DB { … },
//			Kill:    func(ctx context.Context, db *sql.DB, session int64) error { … },
//			Waiters: func(ctx context.Context, db *sql.DB, key string) (int, error) { … },
//		})
//	}
//
// Beside what [sqllock.Backend] demands, the server has to let a session hold a
// hundred locks at once, and Holder has to tell user, state and since when of a
// session of the same user, if a lock is one of a session.
//
// The suite takes names that nobody else uses, so it may share a server. Its
// tests run one after another. Several suites
// may run at the same time; the test that looks for goroutines that were left
// behind waits until it is alone. No test asserts how fast something is.
package locktest
