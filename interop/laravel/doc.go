// Package laravel is.
package laravel
