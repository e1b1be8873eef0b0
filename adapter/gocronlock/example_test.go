package gocronlock_test

import (
	"context"
	"database/sql"
	"errors"
	"log"
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"github.com/sqllock/go-sqllock/mysqlnamed"
	"github.com/sqllock/go-sqllock/sqllock"

	"github.com/sqllock/go-sqllock/adapter/gocronlock"
)

// Each tick of each job runs on one of the hosts.
func ExampleLocker() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	db := openMySQL()

	pool := sqllock.NewPool(db, sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("shop")))
	locker := gocronlock.NewLocker(pool, 20*time.Second) // for jobs of each minute, on clocks that differ by less than 10 s
	scheduler, err := gocron.NewScheduler(
		gocron.WithDistributedLocker(locker),
		gocron.WithGlobalJobOptions(gocron.WithEventListeners(gocron.AfterLockError(func(_ uuid.UUID, job string, err error) {
			if !errors.Is(err, sqllock.ErrBusy) { // another host has it: as it should be
				slog.Error("the job was skipped", "job", job, "err", err)
			}
		}))),
	)
	if err != nil {
		log.Print(err)
		return
	}
	_, err = scheduler.NewJob(
		gocron.CronJob("* * * * *", false),
		gocron.NewTask(func(ctx context.Context) error {
			ctx, cancel := locker.Context(ctx, "invoices") // ends if the lock is lost
			defer cancel()
			return makeInvoices(ctx, db)
		}),
		gocron.WithName("invoices"),
	)
	if err != nil {
		log.Print(err)
		return
	}
	scheduler.Start()
	<-ctx.Done()
	if err := scheduler.Shutdown(); err != nil {
		log.Print(err)
	}
	if err := pool.Close(context.WithoutCancel(ctx)); err != nil {
		log.Print(err)
	}
}

// One host runs all jobs, until it goes.
func ExampleElector() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	db := openMySQL()

	locker := sqllock.New(mysqlnamed.New(), sqllock.WithNamespace("shop"))
	elector := gocronlock.NewElector(db, locker, "cron", gocronlock.OnChange(func(err error) {
		slog.Info("the leader of the jobs has changed", "leading", err == nil, "because", err)
	}))
	if err := elector.Start(ctx); err != nil {
		log.Print(err)
		return
	}
	scheduler, err := gocron.NewScheduler(gocron.WithDistributedElector(elector))
	if err != nil {
		log.Print(err)
		return
	}
	_, err = scheduler.NewJob(
		gocron.CronJob("* * * * *", false),
		gocron.NewTask(makeInvoices, ctx, db),
		gocron.WithName("invoices"),
	)
	if err != nil {
		log.Print(err)
		return
	}
	scheduler.Start()
	<-ctx.Done()
	if err := scheduler.Shutdown(); err != nil {
		log.Print(err)
	}
	if err := elector.Close(context.WithoutCancel(ctx)); err != nil { // the next one leads now
		log.Print(err)
	}
}

func openMySQL() *sql.DB {
	db, err := sql.Open("mysql", "user:password@tcp(127.0.0.1:3306)/shop")
	if err != nil {
		log.Fatal(err)
	}
	return db
}

func makeInvoices(context.Context, *sql.DB) error { return nil }
