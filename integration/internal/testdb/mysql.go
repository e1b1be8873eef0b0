package testdb

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/go-sql-driver/mysql"
)

// OpenDB opens a pool on dsn after change, if there is one, has changed it. The
// driver's log of broken connections, which tests bring about, goes nowhere.
func OpenDB(dsn string, change func(*mysql.Config)) (*sql.DB, error) {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	cfg.Logger = &mysql.NopLogger{}
	if change != nil {
		change(cfg)
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

func mysqlDSN(port int) string { return fmt.Sprintf("root@tcp(127.0.0.1:%d)/", port) }

func mysqlOptions(kind Kind, dir, data string, port int) []string {
	options := []string{
		"--datadir=" + data, "--port=" + strconv.Itoa(port), "--bind-address=127.0.0.1",
		"--socket=" + filepath.Join(dir, "s"), "--tmpdir=" + dir, // a server that starts empties it of another's
		"--pid-file=" + filepath.Join(dir, "pid"), "--max-connections=500",
	}
	if os.Geteuid() == 0 {
		options = append(options, "--user=root")
	}
	switch kind {
	case MySQL:
		options = append(options, "--mysqlx=OFF", "--secure-file-priv=NULL", "--innodb-redo-log-capacity=8M")
	case MariaDB:
		options = append(
			options, "--skip-name-resolve", "--innodb-log-file-size=4M", "--innodb-data-file-path=ibdata1:1M:autoextend",
			"--innodb-autoextend-increment=1", "--innodb-undo-tablespaces=0", "--innodb-doublewrite=0",
			"--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0",
		)
	}
	return options
}

// mysqlDocker is what follows `docker run`.
func mysqlDocker(port int, image string) []string {
	return []string{
		"-p", "127.0.0.1:" + strconv.Itoa(port) + ":3306",
		"-e", "MYSQL_ALLOW_EMPTY_PASSWORD=1", "-e", "MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1", image,
	}
}
