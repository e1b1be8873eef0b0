package userlock

import (
	"fmt"
	"strconv"

	"github.com/sqllock/go-sqllock/sqllock"
)

// Kill ends session, if condition holds on the server at that moment. KILL takes no
// placeholder (6413), and any other id than one of a session is error UnknownThread.
func Kill(session int64, condition string) string {
	id := strconv.FormatInt(session, 10)
	return "KILL CONNECTION IF(" + condition + "," + id + ",0)"
}

// ErrKill says why the session of a holder could not be ended.
func ErrKill(who string, session int64, err error) error {
	if Number(err) == 1095 { // ER_KILL_DENIED_ERROR
		return fmt.Errorf("%w: this user may not KILL session %d, of %s, which is another user's; use one database user for all, "+
			"or GRANT CONNECTION_ADMIN (MySQL, and SYSTEM_USER if the holder has it) or CONNECTION ADMIN (MariaDB): %w",
			sqllock.ErrPermission, session, who, err)
	}
	return fmt.Errorf("KILL of session %d, of %s, failed: %w", session, who, err)
}
