// Package otellock reports what happens to locks by OpenTelemetry metrics:
//
//	metrics, err := otellock.New(otel.GetMeterProvider())
//	locker := sqllock.New(backend, sqllock.WithObserver(metrics.Observe))
//	pool := sqllock.NewPool(db, locker)
//	registration, err := metrics.ObservePool("shop", pool)
//
// It stands on the metric API alone; which SDK and which exporter is up to the
// application. The file grafana.json beside this one is a dashboard of all that follows,
// as Prometheus has it.
//
// # Instruments
//
//	sqllock.lock.wait.duration   s            histogram    name, outcome: acquired, busy, gave_up
//	sqllock.lock.hold.duration   s            histogram    name
//	sqllock.lock.ends            {lock}       counter      name, outcome: released, expired, lost, closed
//	sqllock.lock.extensions      {extension}  counter      name, outcome: extended, failed
//	sqllock.lock.takeovers       {takeover}   counter      name
//	sqllock.lock.kills           {session}    counter      name
//	sqllock.lock.starved         {call}       counter      name
//	sqllock.table.repairs        {repair}     counter
//
//	sqllock.pool.lock.count        {lock}        up-down counter   pool
//	sqllock.pool.waiter.count      {call}        up-down counter   pool
//	sqllock.pool.connection.count  {connection}  up-down counter   pool
//	sqllock.pool.lock.age          s             gauge             pool
//	sqllock.pool.waiter.age        s             gauge             pool
//
// The first group is what [Metrics.Observe] is told, of a Locker and its Pools; a grant of
// LockTx has no end that anybody is told of. The second group is asked of a Pool when
// metrics are collected ([Metrics.ObservePool]): what it holds and waits for now, and for
// how long the oldest of these. A holder that hangs is seen there only, since
// the histograms know of a lock when it has ended.
//
// # Attributes
//
//	sqllock.lock.name      the name as the caller gave it, or its group; see below
//	sqllock.lock.outcome   of a wait   acquired  granted, whether or not it had to wait
//	                                   busy      refused at once, as TryLock is: a conflict
//	                                   gave_up   its ctx ended while another one had the lock: a conflict
//	                       of an end   released  by its holder
//	                                   expired   its TTL, or the time of KeepAlive, was over
//	                                   lost      its session ended, or its release was not confirmed
//	                                   closed    by the end of the Pool, under its holder
//	                       extensions  extended, failed
//	sqllock.pool.name      as given to ObservePool
//
// Conflicts are the waits that were not acquired; grants are those that were.
//
// # Names
//
// Each name is a time series for each of its outcomes and for each bucket, and names may be
// made of anybody's input. So a hundred names have series of their own, those that came
// first ([WithNames]); the rest is "(others)", [sqllock.OtherNames]. A name is cut after
// 100 bytes, and what is not UTF-8 in it is replaced. Where names have numbers in them,
// [WithGroups] makes one of many.
//
// Counters of a name are there, as 0, from the first event of that name on, so that
// the first loss is seen as an increase.
//
// # Cost
//
// An event takes about a microsecond and no allocation, and waits for nothing but the
// locks in memory of the SDK.
package otellock
