package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/sqllock/go-sqllock/migrations"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/table"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

const (
	tableTurns = 1500
	filled     = 10000 // rows in a table that is full
)

// tableRows are about package table, on a MyISAM table unless they say otherwise.
func tableRows() []row {
	atMost := func(ratio float64) *float64 { return &ratio }
	return []row{
		{"table, acquire and release / the same two statements raw", atMost(1.3), tableAgainstRaw},
		{"table, acquire and release, InnoDB / MyISAM", nil, tableEngines},
		{"table, acquire and release / the statements of the PHP package", atMost(1), tableAgainstPHP},
		{"table, hand-off p50 / raw GET_LOCK hand-off + raw INSERT", atMost(1.5), tableHandOff},
		{"table, time for a grant, eight sessions on one name / one alone", atMost(1.25), tableContended},
		{"table, acquire and release, 10,000 rows / 10 rows", atMost(1.1), tableFilled},
		{"table, Pool.Do / acquire and release on a held Conn", nil, tablePoolAgainstConn},
	}
}

// withTable is with in a database of its own that has a lock table.
func withTable(ctx context.Context, s *testdb.Server, engine string, f func(b *bench) (result, error)) (res result, err error) {
	return with(ctx, s, func(b *bench) (result, error) {
		name := "bench" + strings.ToLower(rand.Text())
		if _, err := b.db.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
			return result{}, err
		}
		defer b.db.ExecContext(context.WithoutCancel(ctx), "DROP DATABASE "+name) //nolint:errcheck // a server of the user's keeps an empty one
		db, err := testdb.OpenDB(s.DSN, func(c *mysql.Config) { c.DBName = name })
		if err != nil {
			return result{}, err
		}
		defer db.Close() //nolint:errcheck // nothing depends on it
		if err := migrations.Up(ctx, db, migrations.WithEngine(engine)); err != nil {
			return result{}, err
		}
		conn, err := db.Conn(ctx)
		if err != nil {
			return result{}, err
		}
		defer conn.Close() //nolint:errcheck // as above
		return f(&bench{ctx, db, conn, sqllock.New(table.New(time.Minute))})
	})
}

func exec(ctx context.Context, conn *sql.Conn, query string) error {
	_, err := conn.ExecContext(ctx, query)
	return err
}

// statements are the two that a lock and its release come to, as they are sent.
func statements(ctx context.Context, s *testdb.Server, name string) (sent []string, err error) {
	var record bool
	db, err := testdb.OpenDB(s.DSN, func(c *mysql.Config) {
		c.DBName = name
		c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			return recorder{conn, func(packet []byte) {
				if record && len(packet) > 5 { // length, number, command, text
					sent = append(sent, string(packet[5:]))
				}
			}}, err
		}
	})
	if err != nil {
		return nil, err
	}
	defer db.Close() //nolint:errcheck // nothing depends on it
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // as above
	b := &bench{ctx, db, conn, sqllock.New(table.New(time.Minute))}
	if err := b.pair(conn); err != nil {
		return nil, err
	}
	record = true
	if err := b.pair(conn); err != nil {
		return nil, err
	}
	if len(sent) != 2 {
		return nil, fmt.Errorf("a lock and its release are %d statements, not 2: %q", len(sent), sent)
	}
	// The token is another one each time.
	sent[1] = regexp.MustCompile(`token=\d+`).ReplaceAllString(sent[1], "token=token")
	return sent, nil
}

type recorder struct {
	net.Conn
	sent func(packet []byte)
}

func (r recorder) Write(p []byte) (int, error) {
	r.sent(p)
	return r.Conn.Write(p)
}

func tableAgainstRaw(ctx context.Context, s *testdb.Server) (result, error) {
	return withTable(ctx, s, "MyISAM", func(b *bench) (result, error) {
		var name string
		if err := b.db.QueryRowContext(ctx, "SELECT DATABASE()").Scan(&name); err != nil {
			return result{}, err
		}
		sent, err := statements(ctx, s, name)
		if err != nil {
			return result{}, err
		}
		ours, peer, err := takeTurns(tableTurns, timed(b.ours), timed(func() error {
			if err := exec(ctx, b.conn, sent[0]); err != nil {
				return err
			}
			return exec(ctx, b.conn, sent[1])
		}))
		if err != nil {
			return result{}, err
		}
		return compare(ours, peer, 0.5, "raw:"), nil
	})
}

func tableEngines(ctx context.Context, s *testdb.Server) (result, error) {
	return withTable(ctx, s, "InnoDB", func(inno *bench) (result, error) {
		return withTable(ctx, s, "MyISAM", func(my *bench) (result, error) {
			o, p, err := takeTurns(tableTurns, timed(inno.ours), timed(my.ours))
			if err != nil {
				return result{}, err
			}
			return compare(o, p, 0.5, "MyISAM:"), nil
		})
	})
}

// tableAgainstPHP plays the statements of its-mieger/mysql-shared-locks for one
// uncontended lock and its release.
func tableAgainstPHP(ctx context.Context, s *testdb.Server) (result, error) {
	return withTable(ctx, s, "MyISAM", func(b *bench) (result, error) {
		ours, peer, err := takeTurns(tableTurns/3, timed(b.ours), timed(func() error {
			for _, q := range []string{
				"DELETE FROM shared_locks WHERE name='" + name + "' AND (created+ttl<UNIX_TIMESTAMP() OR (lock_acquired AND IFNULL(IS_USED_LOCK('" + name + "'),0)!=connection_id))",
				"INSERT INTO shared_locks (name,created,ttl,connection_id,lock_acquired) VALUES ('" + name + "',UNIX_TIMESTAMP(),60,CONNECTION_ID(),0)",
				"DO GET_LOCK('" + name + "',0)",
				"UPDATE shared_locks SET lock_acquired=1 WHERE name='" + name + "' AND connection_id=CONNECTION_ID()",
				"DELETE FROM shared_locks WHERE name='" + name + "' AND connection_id=CONNECTION_ID()",
				"DO RELEASE_LOCK('" + name + "')", "DO RELEASE_LOCK('" + name + "')",
			} {
				if err := exec(ctx, b.conn, q); err != nil {
					return err
				}
			}
			return nil
		}))
		if err != nil {
			return result{}, err
		}
		return compare(ours, peer, 0.5, "PHP's:"), nil
	})
}

// tableHandOff compares with the sum of what a hand-off can't do without.
func tableHandOff(ctx context.Context, s *testdb.Server) (result, error) {
	return withTable(ctx, s, "MyISAM", func(b *bench) (result, error) {
		waiter, err := b.db.Conn(ctx)
		if err != nil {
			return result{}, err
		}
		defer waiter.Close() //nolint:errcheck // nothing depends on it
		ours := func() (time.Duration, error) { return b.handOff(waiter) }
		floor := func() (time.Duration, error) {
			d, err := rawHandOff(ctx, b.conn, waiter)
			if err != nil {
				return 0, err
			}
			start := time.Now()
			err = exec(ctx, waiter, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired) VALUES ('floor',1,1,1,1)")
			d += time.Since(start)
			if err != nil {
				return 0, err
			}
			return d, exec(ctx, waiter, "DELETE FROM shared_locks")
		}
		o, p, err := takeTurns(handOff, ours, floor)
		if err != nil {
			return result{}, err
		}
		return compare(o, p, 0.5, "raw:"), nil
	})
}

// tableContended has the same number of grants made by eight sessions and by one.
func tableContended(ctx context.Context, s *testdb.Server) (result, error) {
	const sessions, grants = 8, 25
	return withTable(ctx, s, "MyISAM", func(b *bench) (result, error) {
		conns := make([]*sql.Conn, sessions)
		for i := range conns {
			c, err := b.db.Conn(ctx)
			if err != nil {
				return result{}, err
			}
			defer c.Close() //nolint:errcheck,gocritic // eight of them
			conns[i] = c
		}
		many := func() error {
			failed := make([]error, sessions)
			var wg sync.WaitGroup
			for i, c := range conns {
				wg.Go(func() {
					for range grants {
						failed[i] = errors.Join(failed[i], b.pair(c))
					}
				})
			}
			wg.Wait()
			return errors.Join(failed...)
		}
		alone := func() error {
			for range sessions * grants {
				if err := b.pair(b.conn); err != nil {
					return err
				}
			}
			return nil
		}
		o, p, err := takeTurns(20, timed(many), timed(alone))
		if err != nil {
			return result{}, err
		}
		r := compare(o, p, 0.5, "")
		perSecond := func(m measurement) string { return fmt.Sprintf("%.0f grants/s", sessions*grants*1e6/m.quantile(0.5)) }
		r.Ours, r.Peer = perSecond(o), "one alone: "+perSecond(p)
		return r, nil
	})
}

func tablePoolAgainstConn(ctx context.Context, s *testdb.Server) (result, error) {
	return withTable(ctx, s, "MyISAM", (*bench).poolAgainstConn)
}

// tableFilled compares a table that many locks are held in with one of few.
func tableFilled(ctx context.Context, s *testdb.Server) (result, error) {
	return withTable(ctx, s, "MyISAM", func(full *bench) (result, error) {
		return withTable(ctx, s, "MyISAM", func(few *bench) (result, error) {
			for b, n := range map[*bench]int{full: filled, few: 10} {
				_, err := b.db.ExecContext(ctx, "INSERT INTO shared_locks (name,connection_id,created,ttl,lock_acquired) "+
					"SELECT CONCAT('filler-',a.i,b.i,c.i,d.i),1,UNIX_TIMESTAMP(),3600,1 FROM "+digits("a")+","+digits("b")+","+digits("c")+","+digits("d")+
					fmt.Sprintf(" LIMIT %d", n))
				if err != nil {
					return result{}, err
				}
			}
			o, p, err := takeTurns(tableTurns, timed(full.ours), timed(few.ours))
			if err != nil {
				return result{}, err
			}
			return compare(o, p, 0.5, "10 rows:"), nil
		})
	})
}

func digits(alias string) string {
	return "(SELECT 0 AS i UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4 UNION ALL SELECT 5" +
		" UNION ALL SELECT 6 UNION ALL SELECT 7 UNION ALL SELECT 8 UNION ALL SELECT 9) " + alias
}
