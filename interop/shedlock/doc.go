// Package shedlock is.
package shedlock
