package pgsession

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sqllock/go-sqllock/sqllock"
)

// Risk is a property of a server, or of what is between it and us, that keeps an
// advisory lock of a session from being a lock that excludes everybody. The backends
// document each.
type Risk uint8

// The risks that a backend can be told to take.
const (
	ReadOnly Risk = 1 << iota
	Pooler
	Lookalike
)

// State is what is known of a session. It lives with its connection, and is to be used
// while nothing else runs on that.
type State struct {
	PID     int64                                   // as pg_locks has it
	Start   int64                                   // when the session began, in microseconds by the server's clock
	Held    map[string]bool                         // by key: the locks that were granted here
	often   map[string]*pgconn.StatementDescription // what AskOften has run, prepared from the second time on
	version string                                  // as the server describes itself
	taken   Risk                                    // what was allowed when it was admitted
}

// stateKey is for the data that a connection carries.
const stateKey = "github.com/sqllock/go-sqllock"

// State returns what is known of the session. Where that is nothing yet, it looks at the
// server, in one round trip, and returns an error that matches sqllock.ErrUnsupported if
// the locks of a session are not to be trusted there. pkg is the backend's.
func (s *Session) State(allowed Risk, pkg string) (*State, error) {
	st := s.Known()
	if st.PID != 0 && st.taken&^allowed == 0 {
		return st, nil
	}
	if err := s.look(st, allowed, pkg); err != nil {
		return nil, err
	}
	return st, nil
}

// Known returns what is known without a look.
func (s *Session) Known() *State {
	data := s.pg.CustomData()
	st, ok := data[stateKey].(*State)
	if !ok {
		st = &State{Held: make(map[string]bool), often: make(map[string]*pgconn.StatementDescription)}
		data[stateKey] = st
	}
	return st
}

const lookQuery = "SELECT version(),pg_backend_pid(),pg_is_in_recovery()," +
	"(SELECT (extract(epoch FROM backend_start)*1000000)::bigint FROM pg_stat_get_activity(pg_backend_pid()))"

func (s *Session) look(st *State, allowed Risk, pkg string) error {
	if err := s.Ready(); err != nil {
		return err
	}
	var version sql.NullString
	var pid, start sql.NullInt64
	var standby sql.NullBool
	failed := s.Ask(lookQuery, &version, &pid, &standby, &start)
	if failed != nil && !errors.Is(failed, sqllock.ErrSessionGone) {
		_ = s.Ask("SELECT version()", &version) // it may not know the rest
	}
	product := version.String
	if crdb := s.pg.ParameterStatus("crdb_version"); crdb != "" {
		product = crdb
	}
	if product != "" {
		if err := Refused(product, standby.Bool, allowed, pkg); err != nil {
			return err
		}
	}
	if v := s.version(); v > 0 && v < 11 {
		return refuse("the server is of version %d, and hashtextextended, of which lock keys are made, came with PostgreSQL 11", v)
	}
	if failed != nil {
		return failed
	}
	if said := int64(s.pg.PID()); said != pid.Int64 && allowed&Pooler == 0 {
		return refuse("a pooler is between this process and the server (the connection was told it had process %d, and has %d). In "+
			"transaction mode PgBouncer lets sessions change hands, and a lock of a session excludes nobody: use Locker.LockTx of package pgadvisory, "+
			"whose lock ends with the transaction, or a connection past the pooler; if it is in session mode, %s", said, pid.Int64, accept(pkg, "Pooler"))
	}
	st.PID, st.Start, st.version, st.taken = pid.Int64, start.Int64, strings.ToLower(version.String), allowed
	return nil
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{sqllock.ErrUnsupported}, args...)...)
}

func accept(pkg, risk string) string { return pkg + ".Allow(" + pkg + "." + risk + ") accepts it" }

// Refused returns an error that matches sqllock.ErrUnsupported if the advisory locks of
// a server that calls itself version exclude less than everybody, unless that is allowed.
func Refused(version string, standby bool, allowed Risk, pkg string) error {
	switch {
	case allowed&Lookalike == 0 && lookalike(version):
		return refuse("the server is not PostgreSQL (version %q), and its advisory locks have not been tried; those of CockroachDB, "+
			"for one, do nothing; %s", version, accept(pkg, "Lookalike"))
	case allowed&ReadOnly == 0 && standby:
		return refuse("the server is a standby: its locks exclude nobody on the primary; connect to the primary "+
			"(target_session_attrs=read-write); %s", accept(pkg, "ReadOnly"))
	}
	return nil
}

// lookalike tells by what version() says.
func lookalike(version string) bool {
	if !strings.HasPrefix(version, "PostgreSQL ") && !strings.HasPrefix(version, "EnterpriseDB ") {
		return true
	}
	version = strings.ToLower(version)
	for _, word := range []string{"cockroach", "-yb-", "yugabyte", "redshift", "materialize", "risingwave", "cratedb", "questdb", "greenplum", "spanner", "dsql"} {
		if strings.Contains(version, word) {
			return true
		}
	}
	return false
}
