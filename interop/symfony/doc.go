// Package symfony is.
package symfony
