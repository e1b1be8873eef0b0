package migrations

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-sql-driver/mysql"
	"github.com/pressly/goose/v3/database"

	"github.com/sqllock/go-sqllock/sqllock"
)

// explain says what failed.
func explain(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
		err = fmt.Errorf("%w: %w", ended, err) // the driver may speak of the connection only
	}
	return fmt.Errorf("migrations: %s: %w", op, err)
}

// advise adds what to do about the error, where that is known.
func (c *config) advise(err error) error {
	if hint := c.advice(err); hint != "" {
		return fmt.Errorf("%w; %s", err, hint)
	}
	return err
}

func (c *config) advice(err error) string {
	if state(err) != "" && c.dialect.goose != database.DialectPostgres || number(err) != 0 && c.dialect.goose != database.DialectMySQL {
		return c.dialect.other
	}
	switch number(err) {
	case 1044, // ER_DBACCESS_DENIED_ERROR
		1142: // ER_TABLEACCESS_DENIED_ERROR
		return "the user needs GRANT SELECT, INSERT, DELETE, CREATE, ALTER, DROP on the database (DROP is for Down only); " +
			"or have somebody who may run the statements of migrations.SQL"
	case 3750, // ER_TABLE_WITHOUT_PK: sql_require_primary_key
		3161: // ER_DISABLED_STORAGE_ENGINE
		return `use WithEngine("InnoDB"), which creates the table with a primary key; ` +
			"a table that is there already needs an ALTER TABLE … ADD PRIMARY KEY (name) first"
	case 1046: // ER_NO_DB_ERROR
		return c.errNowhere().Error()
	}
	if state(err) == "42501" { // insufficient_privilege
		return "the role needs GRANT USAGE, CREATE ON the SCHEMA (in PostgreSQL 15 and later not everybody may create in public), " +
			"and to own the tables that are there; where they are up to date, GRANT SELECT ON " + c.table + versionSuffix + "; " +
			"or have somebody who may run the statements of migrations.SQL"
	}
	if errors.Is(err, sqllock.ErrUnsupported) {
		return "where one process migrates at a time, use migrations.FS with goose, or the statements of migrations.SQL"
	}
	return ""
}

func noSuchTable(err error) bool {
	return number(err) == 1146 || // ER_NO_SUCH_TABLE
		state(err) == "42P01" // undefined_table
}

// number is that of an error of MySQL or MariaDB, 0 if it is none.
func number(err error) uint16 {
	var answer *mysql.MySQLError
	if errors.As(err, &answer) {
		return answer.Number
	}
	return 0
}

// state is the SQLSTATE of an error of PostgreSQL, "" if it is none. Its drivers
// have this method in common, which that of MySQL has not.
func state(err error) string {
	var answer interface{ SQLState() string }
	if errors.As(err, &answer) {
		return answer.SQLState()
	}
	return ""
}
