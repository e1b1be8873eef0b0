// Package gocronlock has schedulers of github.com/go-co-op/gocron/v2 share their work
// by locks in the database.
package gocronlock
