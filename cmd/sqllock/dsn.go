package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// dsnForms is what errors say of how a DSN looks.
const dsnForms = "it looks like mysql://user:password@host:3306/database, postgres://user:password@host:5432/database " +
	"or, as Go's MySQL driver has it, user:password@tcp(host:3306)/database"

// errEncode is about the mistake that is made most often. What the DSN has where is
// unknown then, so nothing of it is shown.
var errEncode = errors.New("it is no valid URL: characters such as @ : / # ? % in user, password or database have to be written as %40 and the like")

// A target is a database that a DSN names.
type target struct {
	mysql    *mysql.Config   // one of the two
	postgres *pgx.ConnConfig //
}

// String names the target for people, without user and password.
func (t *target) String() string {
	if t.mysql == nil {
		addr := net.JoinHostPort(t.postgres.Host, fmt.Sprint(t.postgres.Port))
		if strings.HasPrefix(t.postgres.Host, "/") {
			addr = t.postgres.Host
		}
		return fmt.Sprintf("PostgreSQL at %s, database %s", addr, t.postgres.Database)
	}
	if t.mysql.DBName == "" {
		return "MySQL at " + t.mysql.Addr
	}
	return fmt.Sprintf("MySQL at %s, database %s", t.mysql.Addr, t.mysql.DBName)
}

// parseDSN reads a DSN in one of three forms. Its errors show nothing of the DSN but
// the names of parameters: what is a password in one that can't be read is anybody's
// guess, so the texts of the drivers' parsers, which quote parts, are not handed on.
func parseDSN(dsn string) (*target, error) {
	dsn = strings.TrimSpace(dsn)
	scheme, _, isURL := strings.Cut(dsn, "://")
	switch {
	case dsn == "":
		return nil, usage("no database is named: set SQLLOCK_DSN, or --dsn-file; %s", dsnForms)
	case strings.ContainsAny(dsn, "\r\n"):
		return nil, usage("the DSN has more than one line; %s", dsnForms)
	case isURL && (scheme == "postgres" || scheme == "postgresql"):
		cfg, err := postgresURL(dsn)
		if err != nil {
			return nil, usage("the DSN is not that of a PostgreSQL: %w; %s", err, dsnForms)
		}
		return &target{postgres: cfg}, nil
	case isURL && (scheme == "mysql" || scheme == "mariadb"):
		cfg, err := mysqlURL(dsn)
		if err != nil {
			return nil, usage("the DSN is not that of a MySQL: %w; %s", err, dsnForms)
		}
		return &target{mysql: cfg}, nil
	case isURL && schemes.MatchString(scheme):
		return nil, usage("the DSN begins with %s://, which is none of mysql, mariadb and postgres; %s", scheme, dsnForms)
	}
	cfg, err := mysqlDSN(dsn)
	if err != nil {
		return nil, usage("the DSN can't be understood: %w; %s", err, dsnForms)
	}
	return &target{mysql: cfg}, nil
}

var (
	schemes    = regexp.MustCompile(`^[a-z][a-z0-9+]{0,19}$`)
	parameters = regexp.MustCompile(`^[A-Za-z][A-Za-z_]{0,63}$`)
	databases  = regexp.MustCompile(`[@()/?#]`)
	errNoHost  = errors.New("it names no host, as in mysql://user:password@host/database, and no parameter socket=")
	errMangled = errors.New("an @, a / or a parenthesis is where none belongs; in the form of a URL they can be written as %40, %2F, %28 and %29")
)

// clearURL refuses what is likely to be a password that was not encoded, parts of
// which would become host, database or parameters, and be shown in errors.
func clearURL(dsn string) (*url.URL, error) {
	_, rest, _ := strings.Cut(dsn, "://")
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	u, err := url.Parse(dsn)
	if err != nil || strings.Count(authority, "@") > 1 || strings.Contains(rest[len(authority):], "@") || strings.Contains(rest, "#") {
		return nil, errEncode
	}
	return u, nil
}

func postgresURL(dsn string) (*pgx.ConnConfig, error) {
	u, err := clearURL(dsn)
	if err != nil {
		// Several hosts with ports, host1:5432,host2:5432, are no URL to Go.
		if !strings.Contains(dsn, ",") || strings.Count(dsn, "@") > 1 || strings.ContainsAny(dsn, "# ") {
			return nil, err
		}
	}
	cfg, err := pgx.ParseConfig(dsn)
	if err == nil {
		return cfg, nil
	}
	var p *pgconn.ParseConfigError
	if u == nil || !errors.As(err, &p) {
		return nil, errors.New("host, port, or a parameter can't be read")
	}
	// Of the parameters that are right alone, none is to be blamed.
	for key, values := range u.Query() {
		if _, err := pgx.ParseConfig("postgres://localhost/?" + url.Values{key: values}.Encode()); err != nil && parameters.MatchString(key) {
			return nil, fmt.Errorf("the value of its parameter %s can't be used", key)
		}
	}
	return nil, errors.New("host, port, or a file that it names can't be read")
}

// mysqlURL translates a URL, as other tools take it, into what the driver takes. The
// parameters are the driver's; socket names a unix socket.
func mysqlURL(dsn string) (*mysql.Config, error) {
	u, err := clearURL(dsn)
	if err != nil {
		return nil, err
	}
	params, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errEncode
	}
	where := mysql.NewConfig()
	where.DBName = strings.TrimPrefix(u.Path, "/")
	where.Net, where.Addr = "tcp", u.Host
	if u.Port() == "" {
		where.Addr = net.JoinHostPort(u.Hostname(), "3306")
	}
	if socket := params.Get("socket"); socket != "" {
		where.Net, where.Addr = "unix", socket
		params.Del("socket")
	} else if u.Hostname() == "" {
		return nil, errNoHost
	}
	cfg, err := withParameters(where.FormatDSN(), params.Encode())
	if err != nil {
		return nil, err
	}
	cfg.User = u.User.Username() // the driver's parser gets neither
	cfg.Passwd, _ = u.User.Password()
	return cfg, nil
}

// mysqlDSN reads the form of the driver.
func mysqlDSN(dsn string) (*mysql.Config, error) {
	slash := strings.LastIndexByte(dsn, '/')
	if slash < 0 {
		return nil, errors.New("it has no / before the name of the database")
	}
	where, params := dsn, ""
	if i := strings.IndexByte(dsn[slash:], '?'); i >= 0 {
		where, params = dsn[:slash+i], dsn[slash+i+1:]
	}
	cfg, err := mysql.ParseDSN(where)
	if err != nil || databases.MatchString(cfg.DBName) {
		return nil, errMangled
	}
	switch cfg.Net {
	case "tcp", "unix":
	default:
		return nil, errors.New("what is before the parenthesis is neither tcp nor unix")
	}
	return withParameters(where, params)
}

// withParameters has the driver parse parameters, one by one first: its errors do not
// tell which of them is wrong.
func withParameters(where, params string) (cfg *mysql.Config, err error) {
	if params == "" {
		return mysql.ParseDSN(where)
	}
	for param := range strings.SplitSeq(params, "&") {
		key, _, found := strings.Cut(param, "=")
		switch {
		case !parameters.MatchString(key):
			return nil, errors.New("it has a parameter that is no word")
		case !found:
			return nil, fmt.Errorf("its parameter %s has no value", key)
		case key == "strict": // for which the driver panics
			return nil, errors.New("there is no parameter strict any more; sql_mode is one")
		}
		if _, err := mysql.ParseDSN("tcp(localhost)/?" + param); err != nil {
			return nil, fmt.Errorf("the value of its parameter %s can't be used", key)
		}
	}
	if strings.Contains(where, "?") { // FormatDSN tells of what is not the default
		return mysql.ParseDSN(where + "&" + params)
	}
	return mysql.ParseDSN(where + "?" + params)
}

// readDSN finds the DSN: of the flag, in the file, or in the environment, in this order.
func readDSN(flag, file string, getenv func(string) string) (string, error) {
	if flag != "" && file != "" {
		return "", usage("--dsn and --dsn-file are both given: which is meant?")
	}
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
	if strings.TrimSpace(string(text)) == "" {
		return "", usage("the file with the DSN, %s, is empty", file)
	}
	return string(text), nil
}
