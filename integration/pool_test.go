package integration

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

func TestPoolThousandOnOneName(t *testing.T) {
	onEach(t, func(t *testing.T, s *testdb.Server) {
		db := open(t, s)
		db.SetMaxOpenConns(4)
		p := sqllock.NewPool(db, sqllock.New(mysqlnamed.New()))
		name := lockName("thousand")
		n := 0
		var wg sync.WaitGroup
		start := time.Now()
		for range 1000 {
			wg.Go(func() {
				err := p.Do(t.Context(), name, func(context.Context, *sqllock.Lock) error {
					n++
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		t.Log(time.Since(start), n, p.Stats())
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		t.Log(db.Stats())
	})
}
