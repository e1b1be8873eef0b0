// Endpoint is a web server with an operation that runs once at a time in the whole fleet:
// who asks for it meanwhile, on whichever host, gets 409 Conflict and Retry-After.
//
//	DSN=… go run ./examples/endpoint -listen :8080 -pause 5s
//	DSN=… go run ./examples/endpoint -listen :8081 -pause 5s
//	curl -i -X POST localhost:8080/rebuild
//
// With -without two requests at a time do it twice.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/sqllock/go-sqllock/examples/internal/server"
	"github.com/sqllock/go-sqllock/sqllock"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "the address to listen on")
	server.Main("the lock", func(ctx context.Context, s *server.Server) error { return run(ctx, s, *listen) })
}

func run(ctx context.Context, s *server.Server, listen string) error {
	if err := s.Prepare(ctx, server.Table{Name: "search", Columns: "id bigint PRIMARY KEY, builds bigint NOT NULL", Rows: "(1,0)"}); err != nil {
		return err
	}
	rebuild := func(ctx context.Context) error {
		log.Print("rebuilding")
		if err := s.Work(ctx); err != nil {
			return err
		}
		_, err := s.DB.ExecContext(ctx, "UPDATE search SET builds = builds + 1 WHERE id = 1")
		return err
	}
	// A Pool is for many requests: those that are turned away share a connection.
	pool := sqllock.NewPool(s.DB, sqllock.New(s.Locks(), sqllock.WithNamespace("search")))
	mux := http.NewServeMux()
	mux.Handle("POST /rebuild", oneAtATime(pool, "rebuild", rebuild))
	if s.Without {
		mux = http.NewServeMux()
		mux.HandleFunc("POST /rebuild", func(_ http.ResponseWriter, r *http.Request) { _ = rebuild(r.Context()) })
	}
	return serve(ctx, listen, mux, pool)
}

// oneAtATime runs work under the lock called name, or answers 409. The ctx of work ends if
// the lock is lost, and if the client has gone.
func oneAtATime(pool *sqllock.Pool, name string, work func(ctx context.Context) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ran, err := pool.TryDo(r.Context(), name, func(ctx context.Context, _ *sqllock.Lock) error { return work(ctx) })
		switch {
		case err != nil:
			log.Print(err)
			http.Error(w, "it was not done, or not all of it", http.StatusInternalServerError)
		case !ran:
			w.Header().Set("Retry-After", "5")
			http.Error(w, "it is being done", http.StatusConflict)
		default:
			fmt.Fprintln(w, "done")
		}
	})
}

// serve answers requests until ctx ends, then waits for those that are being answered.
func serve(ctx context.Context, listen string, handler http.Handler, pool *sqllock.Pool) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	fmt.Println("listening on", l.Addr())
	web := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err := web.Shutdown(last)
		stopped <- errors.Join(err, pool.Close(last))
	}()
	if err := web.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}
