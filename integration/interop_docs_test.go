package integration

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// TestInteropSQL: the statements that docs/interop.md has for the night find a lock of ours.
func TestInteropSQL(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/interop.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), "```sql\n")
	block, _, _ = strings.Cut(block, "```")
	// A statement ends in ";", and behind it stands where it runs; without that everywhere.
	statements := make(map[string]string)
	var statement strings.Builder
	for line := range strings.Lines(block) {
		code, where, ended := strings.Cut(line, ";")
		statement.WriteString(code)
		if ended {
			statements[statement.String()] = where
			statement.Reset()
		}
	}
	onInterop(t, func(c *interopCase) {
		l := acquire(c.T, sqllock.New(c.backend(time.Minute, c.db)), conn(c.T, c.db), "invoices")
		defer release(c.T, l)
		ran := 0
		for q, where := range statements {
			if !strings.Contains(q, " "+c.table) || strings.Contains(where, c.pick("PostgreSQL", "MySQL")) {
				continue
			}
			ran++
			if n := rowCount(c, q); n != 1 {
				c.Errorf("%d rows of %s", n, q)
			}
		}
		if ran != 1 {
			c.Errorf("%d statements are for this table here", ran)
		}
	})
}

func rowCount(c *interopCase, query string) (n int) {
	c.Helper()
	rows, err := c.db.QueryContext(c.Context(), query)
	if err != nil {
		c.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
		n++
	}
	if err := rows.Err(); err != nil {
		c.Fatal(err)
	}
	return n
}
