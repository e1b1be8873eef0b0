package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// dsnForms is what errors say of how a DSN looks.
const dsnForms = "it looks like mysql://user:password@host:3306/database, postgres://user:password@host:5432/database " +
	"or, as Go's MySQL driver has it, user:password@tcp(host:3306)/database"

// A target is a database that a DSN names.
type target struct {
	mysql    *mysql.Config   // one of the two
	postgres *pgx.ConnConfig //
}

// String names the target for people, without user and password.
func (t *target) String() string {
	if t.mysql != nil {
		return fmt.Sprintf("MySQL at %s, database %s", t.mysql.Addr, t.mysql.DBName)
	}
	return fmt.Sprintf("PostgreSQL at %s, database %s", net.JoinHostPort(t.postgres.Host, fmt.Sprint(t.postgres.Port)), t.postgres.Database)
}

// parseDSN reads a DSN in one of three forms. Its errors do not show the DSN, which has
// a password in it.
func parseDSN(dsn string) (*target, error) {
	dsn = strings.TrimSpace(dsn)
	scheme, _, isURL := strings.Cut(dsn, "://")
	switch {
	case dsn == "":
		return nil, usage("no database is named: set SQLLOCK_DSN, or --dsn-file; %s", dsnForms)
	case isURL && (scheme == "postgres" || scheme == "postgresql"):
		cfg, err := pgx.ParseConfig(dsn)
		if err != nil {
			return nil, usage("the DSN is not that of a PostgreSQL: %w; %s", withoutDSN(err), dsnForms)
		}
		return &target{postgres: cfg}, nil
	case isURL && (scheme == "mysql" || scheme == "mariadb"):
		cfg, err := mysqlURL(dsn)
		if err != nil {
			return nil, usage("the DSN is not that of a MySQL: %w; %s", withoutDSN(err), dsnForms)
		}
		return &target{mysql: cfg}, nil
	case isURL && !strings.ContainsAny(scheme, "@/(:"):
		return nil, usage("the DSN begins with %s://, which is none of mysql, mariadb and postgres; %s", scheme, dsnForms)
	}
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, usage("the DSN can't be understood: %w; %s", withoutDSN(err), dsnForms)
	}
	return &target{mysql: cfg}, named(cfg)
}

// named wants a database, which locks do not need but tables do.
func named(cfg *mysql.Config) error {
	if cfg.DBName == "" {
		return usage("the DSN names no database, as in mysql://user:password@host:3306/database")
	}
	return nil
}

// withoutDSN takes the DSN out of an error of a parser.
func withoutDSN(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		// Some of these quote the part that they could not read, which may be of a password.
		return errors.New("it is no valid URL: characters such as @ : / # ? % in user or password have to be written as %40 and the like")
	}
	var p *pgconn.ParseConfigError
	if errors.As(err, &p) {
		return errors.New("host, port, or a parameter can't be read")
	}
	return err
}

// mysqlURL translates a URL, as other tools take it, into what the driver takes. The
// parameters are the driver's; socket names a unix socket.
func mysqlURL(dsn string) (*mysql.Config, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return nil, err
	}
	params := u.Query()
	cfg := mysql.NewConfig()
	cfg.User = u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	cfg.DBName = strings.TrimPrefix(u.Path, "/")
	cfg.Net, cfg.Addr = "tcp", u.Host
	if u.Port() == "" {
		cfg.Addr = net.JoinHostPort(u.Hostname(), "3306")
	}
	if socket := params.Get("socket"); socket != "" {
		cfg.Net, cfg.Addr = "unix", socket
		params.Del("socket")
	} else if u.Hostname() == "" {
		return nil, errors.New("it names no host")
	}
	dsn = cfg.FormatDSN()
	if query := params.Encode(); query != "" {
		if strings.Contains(dsn, "?") {
			query = "&" + query
		} else {
			query = "?" + query
		}
		dsn += query
	}
	if cfg, err = mysql.ParseDSN(dsn); err != nil {
		return nil, err
	}
	return cfg, named(cfg)
}

// readDSN finds the DSN: of the flag, in the file, or in the environment, in this order.
func readDSN(flag, file string, getenv func(string) string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if file == "" && getenv("SQLLOCK_DSN") == "" {
		file = getenv("SQLLOCK_DSN_FILE")
	}
	if file == "" {
		return getenv("SQLLOCK_DSN"), nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", usage("the file with the DSN: %w", err)
	}
	return string(text), nil
}
