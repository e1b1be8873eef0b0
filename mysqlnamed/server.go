package mysqlnamed

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

// kind is what two sessions have in common when one look serves for both.
type kind struct {
	host     string // @@hostname
	port     int64  // @@port
	readOnly string // @@read_only: it may change while a session lives
}

func isMariaDB(version string) bool { return strings.Contains(version, "MariaDB") }

// lookalikes are words in the version or version_comment of servers that are
// neither MySQL nor MariaDB.
var lookalikes = []string{ //nolint:gochecknoglobals // a constant, if Go had them
	"dolt", "tidb", "vitess", "oceanbase", "singlestore", "memsql", "starrocks", "doris",
	"clickhouse", "polardb-x", "greptime", "databend", "manticore", "sphinx",
}

// admitted returns the version of the server if sessions of kind k have passed a
// look.
func (b *Backend) admitted(k kind) (version string, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	version, ok = b.kinds[k]
	return version, ok
}

func (b *Backend) admit(k kind, version string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kinds[k] = version
}

// untried reports whether no kind has passed a look. No session may be tried
// before one has: on the oldest servers that would free another lock.
func (b *Backend) untried() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.kinds) == 0
}

// look asks the server what it is, and returns its version, or an error that
// matches sqllock.ErrUnsupported if its locks are not to be trusted.
func (b *Backend) look(ctx context.Context, s *session.Session) (version string, err error) {
	vars, err := variables(ctx, s)
	if err != nil {
		return "", err
	}
	if vars["version"] == "" && b.allowed&Lookalike == 0 {
		return "", fmt.Errorf("%w: SHOW GLOBAL VARIABLES does not tell the server's version; "+
			"has the session set sql_select_limit or character_set_results?", sqllock.ErrUnsupported)
	}
	if why := refuse(vars, b.allowed); why != "" {
		return "", fmt.Errorf("%w: %s", sqllock.ErrUnsupported, why)
	}
	return vars["version"], nil
}

func variables(ctx context.Context, s *session.Session) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
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
func refuse(vars map[string]string, allowed Risk) string {
	version, comment := vars["version"], vars["version_comment"]
	on := func(name string) bool { return vars[name] != "" && vars[name] != "OFF" && vars[name] != "0" }
	switch {
	case allowed&Lookalike == 0 && isLookalike(version+" "+comment):
		return fmt.Sprintf("the server is not MySQL or MariaDB (version %q, %q), and its GET_LOCK has not been tried; "+
			"mysqlnamed.Allow(mysqlnamed.Lookalike) accepts it", version, comment)
	case allowed&OneLockPerSession == 0 && oneLockPerSession(version):
		return fmt.Sprintf("on version %q a second GET_LOCK in a session silently frees the first; "+
			"MySQL 5.7.5 and MariaDB 10.0.2 are the first without that; "+
			"mysqlnamed.Allow(mysqlnamed.OneLockPerSession) accepts it", version)
	case allowed&ReadOnly == 0 && (on("read_only") || on("innodb_read_only")):
		return "the server is read-only, so probably a replica: its locks exclude nobody on the primary; " +
			"connect to the primary; mysqlnamed.Allow(mysqlnamed.ReadOnly) accepts it"
	case allowed&PerNode == 0 && on("wsrep_on"):
		return "the server is a node of a Galera cluster (wsrep_on), and GET_LOCK excludes on one node only; " +
			"if every process uses one and the same node, mysqlnamed.Allow(mysqlnamed.PerNode) accepts it"
	case allowed&PerNode == 0 && vars["group_replication_group_name"] != "" && !on("group_replication_single_primary_mode"):
		return "the server is one of several primaries of a replication group, and GET_LOCK excludes on one of them only; " +
			"if every process uses one and the same, mysqlnamed.Allow(mysqlnamed.PerNode) accepts it"
	case allowed&PerNode == 0 && strings.Contains(version, "-cluster"):
		return "the server is one SQL node of an NDB Cluster, and GET_LOCK excludes on one node only; " +
			"if every process uses one and the same node, mysqlnamed.Allow(mysqlnamed.PerNode) accepts it"
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
	if isMariaDB(version) {
		return older(version, 10, 0, 2)
	}
	return older(version, 5, 7, 5)
}

// older compares versions. MariaDB once put "5.5.5-" in front of its own, for
// old replicas' sake. What can't be read as a version is not older.
func older(version string, than ...int) bool {
	if isMariaDB(version) {
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
