package userlock

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

// Risk is a property of a server that keeps GET_LOCK from being a lock that
// excludes everybody. The backends document each.
type Risk uint8

// The risks that a backend can be told to take.
const (
	OneLockPerSession Risk = 1 << iota
	ReadOnly
	PerNode
	Lookalike
)

// Kind is what two sessions have in common when one look serves for both.
type Kind struct {
	Host     string // @@hostname
	Port     int64  // @@port
	ReadOnly string // @@read_only: it may change while a session lives
}

// Admitted is what has passed a look, and what was seen. It is safe for
// concurrent use.
type Admitted[K comparable, V any] struct {
	mu   sync.Mutex // guards seen
	seen map[K]V
}

// Get returns what was seen of k, if sessions of that kind have passed a look.
func (a *Admitted[K, V]) Get(k K) (V, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, ok := a.seen[k]
	return v, ok
}

// Put notes that sessions of kind k have passed a look.
func (a *Admitted[K, V]) Put(k K, v V) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen == nil {
		a.seen = make(map[K]V)
	}
	a.seen[k] = v
}

// None reports whether nothing has passed a look. No session may be tried
// before something has: on the oldest servers that would free another lock.
func (a *Admitted[K, V]) None() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.seen) == 0
}

// IsMariaDB tells the two servers apart.
func IsMariaDB(version string) bool { return strings.Contains(version, "MariaDB") }

// lookalikes are words in the version or version_comment of servers that are
// neither MySQL nor MariaDB.
var lookalikes = []string{ //nolint:gochecknoglobals // a constant, if Go had them
	"dolt", "tidb", "vitess", "oceanbase", "singlestore", "memsql", "starrocks", "doris",
	"clickhouse", "polardb-x", "greptime", "databend", "manticore", "sphinx",
}

// Look asks the server what it is, for the backend in pkg, and returns its version, or an error that
// matches sqllock.ErrUnsupported if its locks are not to be trusted.
func Look(ctx context.Context, s *session.Session, allowed Risk, pkg string) (version string, err error) {
	if name := fmt.Sprintf("%T", s.Driver()); name == "*stdlib.Conn" { // by its name, since only who uses pgx should link it
		return "", fmt.Errorf("%w: the pool's connections are of the driver %s, and have to be those of github.com/go-sql-driver/mysql; on PostgreSQL use pgadvisory, or pgtable",
			sqllock.ErrUnsupported, name)
	}
	vars, err := variables(ctx, s)
	if err != nil {
		return "", err
	}
	if vars["version"] == "" && allowed&Lookalike == 0 {
		return "", fmt.Errorf("%w: SHOW GLOBAL VARIABLES does not tell the server's version; "+
			"has the session set sql_select_limit or character_set_results?", sqllock.ErrUnsupported)
	}
	if why := refuse(vars, allowed, pkg); why != "" {
		return "", fmt.Errorf("%w: %s", sqllock.ErrUnsupported, why)
	}
	return vars["version"], nil
}

func variables(ctx context.Context, s *session.Session) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), AnswerTime)
	defer cancel()
	vars := make(map[string]string)
	err := s.Query(ctx, lookQuery, func(values []driver.Value) error {
		var name, value sql.NullString
		if len(values) != 2 {
			return fmt.Errorf("SHOW VARIABLES has %d columns", len(values))
		}
		if err := errors.Join(name.Scan(values[0]), value.Scan(values[1])); err != nil {
			return err
		}
		vars[strings.ToLower(name.String)] = value.String
		return nil
	})
	return vars, understood(ctx, err)
}

// refuse says why the locks of a server with these variables exclude less than
// everybody, or "" if they don't, or if that is allowed.
func refuse(vars map[string]string, allowed Risk, pkg string) string {
	version, comment := vars["version"], vars["version_comment"]
	accept := func(risk string) string { return pkg + ".Allow(" + pkg + "." + risk + ") accepts it" }
	on := func(name string) bool { return vars[name] != "" && vars[name] != "OFF" && vars[name] != "0" }
	switch {
	case allowed&Lookalike == 0 && isLookalike(version+" "+comment):
		return fmt.Sprintf("the server is not MySQL or MariaDB (version %q, %q), and its GET_LOCK has not been tried; "+
			accept("Lookalike"), version, comment)
	case allowed&OneLockPerSession == 0 && oneLockPerSession(version):
		return fmt.Sprintf("on version %q a second GET_LOCK in a session silently frees the first; "+
			"MySQL 5.7.5 and MariaDB 10.0.2 are the first without that; "+
			accept("OneLockPerSession"), version)
	case allowed&ReadOnly == 0 && (on("read_only") || on("innodb_read_only")):
		return "the server is read-only, so probably a replica: its locks exclude nobody on the primary; " +
			"connect to the primary; " + accept("ReadOnly")
	case allowed&PerNode == 0 && on("wsrep_on"):
		return "the server is a node of a Galera cluster (wsrep_on), and GET_LOCK excludes on one node only; " +
			"if every process uses one and the same node, " + accept("PerNode")
	case allowed&PerNode == 0 && vars["group_replication_group_name"] != "" && !on("group_replication_single_primary_mode"):
		return "the server is one of several primaries of a replication group, and GET_LOCK excludes on one of them only; " +
			"if every process uses one and the same, " + accept("PerNode")
	case allowed&PerNode == 0 && strings.Contains(version, "-cluster"):
		return "the server is one SQL node of an NDB Cluster, and GET_LOCK excludes on one node only; " +
			"if every process uses one and the same node, " + accept("PerNode")
	}
	return ""
}

func isLookalike(description string) bool {
	description = strings.ToLower(description)
	for _, word := range lookalikes {
		if strings.Contains(description, word) {
			return true
		}
	}
	return false
}

// oneLockPerSession compares with the first versions that count locks.
func oneLockPerSession(version string) bool {
	if IsMariaDB(version) {
		return older(version, 10, 0, 2)
	}
	return older(version, 5, 7, 5)
}

// older compares versions. MariaDB once put "5.5.5-" in front of its own, for
// old replicas' sake. What can't be read as a version is not older.
func older(version string, than ...int) bool {
	if IsMariaDB(version) {
		version = strings.TrimPrefix(version, "5.5.5-")
	}
	numbers, _, _ := strings.Cut(version, "-")
	for i, part := range strings.SplitN(numbers, ".", len(than)) {
		n, err := strconv.Atoi(part)
		if err != nil || n > than[i] {
			return false
		}
		if n < than[i] {
			return true
		}
	}
	return false
}
