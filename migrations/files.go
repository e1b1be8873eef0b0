package migrations

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"testing/fstest"
)

//go:embed mysql/*.sql mysql/fences/*.sql postgres/*.sql postgres/fences/*.sql
var embedded embed.FS

const (
	upMark    = "-- +goose Up\n"
	downMark  = "-- +goose Down\n"
	beginMark = "-- +goose StatementBegin\n"
	endMark   = "-- +goose StatementEnd\n"
)

// FS returns the migrations with the options applied: a folder of SQL files for
// goose, its command or its Provider, with dialect "mysql", or with [Postgres]
// "postgres". Use a version table of their own, and keep others from migrating
// meanwhile: [Up] does both, and also refuses a table that is not a lock table, or with
// [Fences] not a fence table, which the files alone do not. An error is about the
// options. With the goose command, after os.CopyFS("locks", fsys):
//
//	goose -dir locks -table shared_locks_version mysql "$DSN" up
//
// Up may follow, where the version table is called like that: the table's name
// with "_version" behind it. On PostgreSQL goose does not quote it, so that is not so
// for a name with capital letters, or one that begins with a digit or "$".
func FS(opts ...Option) (fs.FS, error) {
	c, err := configure(opts)
	if err != nil {
		return nil, fmt.Errorf("migrations: %w", err)
	}
	files, err := c.files()
	if err != nil {
		return nil, fmt.Errorf("migrations: %w", err)
	}
	return files, nil
}

// SQL returns what [Up] brings about as plain SQL for other tools. It has to run
// on one session, one statement after the other (the mysql client and psql do; the
// driver of MySQL needs multiStatements for it as a whole), and may run again; [Up] may
// follow, too. An error is about the options.
func SQL(opts ...Option) (string, error) {
	files, err := FS(opts...)
	if err != nil {
		return "", err
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return "", err
	}
	ups := make([]string, len(names))
	for i, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return "", err
		}
		_, up, _ := strings.Cut(string(text), upMark)
		up, _, _ = strings.Cut(up, downMark)
		up = strings.NewReplacer(beginMark, "", endMark, "").Replace(up)
		ups[i] = strings.TrimSpace(up) + "\n"
	}
	return strings.Join(ups, "\n"), nil
}

// files returns the embedded files, which are written for the default options,
// with c applied.
func (c *config) files() (fs.FS, error) {
	names, err := fs.Glob(embedded, c.set.folder+"/*.sql")
	if err != nil {
		return nil, err
	}
	files := make(fstest.MapFS)
	for _, name := range names {
		text, err := embedded.ReadFile(name)
		if err != nil {
			return nil, err
		}
		files[path.Base(name)] = &fstest.MapFile{Data: []byte(c.replacer().Replace(string(text))), Mode: 0o444}
	}
	return files, nil
}

// replacer changes the names, and in the files of the lock table the engine.
func (c *config) replacer() *strings.Replacer {
	var pairs []string
	for _, quote := range []string{c.dialect.quote, "'"} {
		for _, suffix := range []string{"", tokenSuffix} {
			pairs = append(pairs, quote+c.set.table+suffix+quote, quote+c.table+suffix+quote)
		}
	}
	if c.engine == "InnoDB" {
		pairs = append(pairs, "UNIQUE KEY `shared_locks_ix1`", "PRIMARY KEY")
	}
	if c.engine != "" {
		pairs = append(
			pairs, "ENGINE=MyISAM", "ENGINE="+c.engine,
			"COMMENT='go-sqllock: locks';\n", "COMMENT='go-sqllock: locks';\n\n"+
				"-- For a table that was there already.\n"+
				"ALTER TABLE `"+c.table+"` ENGINE="+c.engine+";\n",
		)
	}
	return strings.NewReplacer(pairs...)
}
