package table

import (
	"database/sql"
	"time"

	"github.com/sqllock/go-sqllock/internal/userlock"
	"github.com/sqllock/go-sqllock/sqllock"
)

// row is what a look at a name finds.
type row struct {
	there                                  bool
	name                                   string
	session, created, ttl, acquired, token int64
	process                                string
	used, bell                             sql.NullInt64 // who holds the doorbell: under the row's name, under ours
	left                                   time.Duration
	started, own                           int64
	kind                                   string
}

func (r *row) ascii() bool {
	for i := range len(r.name) {
		if r.name[i] >= 0x80 {
			return false
		}
	}
	return true
}

// literal is the name as it is stored.
func (r *row) literal() string {
	if r.ascii() {
		return text(r.name)
	}
	return "CONVERT(_utf8mb4 " + userlock.Literal(r.name) + " USING latin1)"
}

// doorbell is the name as GET_LOCK takes it.
func (r *row) doorbell() string {
	if r.ascii() {
		return text(r.name)
	}
	return "_utf8mb4 " + userlock.Literal(r.name)
}

func (r *row) holder() sqllock.Holder {
	return sqllock.Holder{
		Key: r.name, Session: r.session, Process: r.process, Token: r.token,
		Since: time.Unix(r.created, 0), Expires: time.Unix(r.created+min(r.ttl, 99999999999)+1, 0),
	}
}
