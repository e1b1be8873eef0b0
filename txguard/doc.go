// Package txguard is for work that must not be committed after its lock was lost.
package txguard
