package pgtable

import (
	"database/sql"
	"math"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// row is what a look at a name finds.
type row struct {
	there                        bool
	session, created, ttl, token int64
	process                      string
	left                         time.Duration
}

// rowOf are the columns of a row, as queries have them, all NULL if there is none.
type rowOf struct {
	session, created, ttl, token, left sql.NullInt64
	process                            sql.NullString
}

func (c *rowOf) dest() []sql.Scanner {
	return []sql.Scanner{&c.session, &c.created, &c.ttl, &c.token, &c.process, &c.left}
}

func (c *rowOf) row() row {
	return row{
		there: c.token.Valid, session: c.session.Int64, created: c.created.Int64, ttl: c.ttl.Int64, token: c.token.Int64,
		process: c.process.String, left: length(c.left.Int64, time.Microsecond),
	}
}

func (r *row) holder(key string) sqllock.Holder {
	return sqllock.Holder{
		Key: key, Session: r.session, Process: r.process, Token: r.token,
		Since: time.Unix(r.created, 0), Expires: time.Unix(r.created+min(r.ttl, 99999999999)+1, 0), TimeLeft: r.left,
	}
}

// length is n units, or the longest duration there is.
func length(n int64, unit time.Duration) time.Duration {
	limit := int64(math.MaxInt64 / unit)
	return time.Duration(max(min(n, limit), -limit)) * unit
}

// wholeSeconds rounds up.
func wholeSeconds(d time.Duration) int64 { return int64((d-1)/time.Second) + 1 }
