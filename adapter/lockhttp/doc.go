// Package lockhttp shows the locks of a process over HTTP: what its Pools hold and wait
// for, since when, by which function, and who on the server has what is waited for.
//
//	admin := http.NewServeMux()
//	admin.Handle("/debug/locks", lockhttp.Handler(map[string]*sqllock.Pool{"shop": pool}))
//
// As net/http/pprof, it is for operators alone: names of locks, functions, hosts and
// database users are nobody else's business, and it may take a connection. Put it on an
// address of its own, or behind the authentication of the application.
//
// It shows what goes through a [sqllock.Pool], of this process. Locks of a Locker without a
// Pool, and those of other processes, are found by asking the server for a name.
//
// # The page
//
// It is one HTML page that needs nothing from elsewhere, and no JavaScript; its
// Content-Security-Policy allows none. refresh=5 in the query has the browser load it
// again every 5 seconds. It shows a thousand rows of each table at most.
//
// Showing it sends nothing to the server. Only holder=NAME (and pool=NAME, if there
// are several) asks the server who holds a lock, by one statement over the *sql.DB of the
// Pool, for two seconds at most, one request at a time. That does not go with refresh.
//
// # JSON
//
// format=json in the query, or a header Accept with application/json and without
// text/html, has the same as JSON, with all rows:
//
//	time, process         when, and which process: "host/pid program"
//	pools[]               by name
//	  name, connections
//	  held[]              the oldest first
//	    name, by, since, held_seconds, session, sharing, token, ttl_left_seconds, released, lost
//	  waiting[]           the oldest first
//	    name, by, since, waiting_seconds, holder, problem
//	  counts[]            those that were waited for longest first
//	    name, acquired, handed_on, busy, released, lost, expired, extended, starved,
//	    taken_over, killed, waited_seconds, held_seconds
//	holder                if asked for
//	  pool, name, held, error
//	  key, session, process, user, host, database, state, token, alive, since, ttl_left_seconds
//
// The fields are those of [sqllock.HeldLock], [sqllock.WaitingCall], [sqllock.NameStats]
// and [sqllock.Holder]; times are RFC 3339, durations numbers of seconds. ttl_left_seconds
// is null for a lock without a TTL, the since of a holder is left out if the server does not
// tell. What a future version adds are further fields.
package lockhttp
