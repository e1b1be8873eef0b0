package lockhttp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/sqllock/go-sqllock/adapter/lockhttp"
	"github.com/sqllock/go-sqllock/sqllock"
	"github.com/sqllock/go-sqllock/sqllock/memory"
)

// The page is mounted beside pprof, on an address that operators alone can reach, and a
// script reads the same as JSON.
func Example() {
	ctx := context.Background()
	server := memory.New()
	db := server.DB() // in place of sql.Open
	defer db.Close()
	pool := sqllock.NewPool(db, sqllock.New(server.Backend())) // in place of mysqlnamed.New()
	defer pool.Close(ctx)

	admin := http.NewServeMux()
	admin.Handle("/debug/locks", lockhttp.Handler(map[string]*sqllock.Pool{"shop": pool}))
	site := httptest.NewServer(admin) // in place of http.ListenAndServe("localhost:6060", admin)
	defer site.Close()

	err := pool.Do(ctx, "invoices", func(ctx context.Context, _ *sqllock.Lock) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, site.URL+"/debug/locks?format=json", http.NoBody)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		var report struct {
			Pools []struct {
				Name string `json:"name"`
				Held []struct {
					Name string  `json:"name"`
					Held float64 `json:"held_seconds"`
				} `json:"held"`
			} `json:"pools"`
		}
		if err := json.NewDecoder(res.Body).Decode(&report); err != nil {
			return err
		}
		for _, p := range report.Pools {
			for _, l := range p.Held {
				fmt.Println(p.Name, "holds", l.Name, "for less than a minute:", l.Held < 60)
			}
		}
		return nil
	})
	fmt.Println(err)
	// Output:
	// shop holds invoices for less than a minute: true
	// <nil>
}

// The page of an application, on an address that operators alone can reach.
func ExampleHandler() {
	var pool *sqllock.Pool // the application's
	admin := http.NewServeMux()
	admin.Handle("/debug/locks", lockhttp.Handler(map[string]*sqllock.Pool{"shop": pool}))
	go http.ListenAndServe("localhost:6060", admin)
}
