package rowlock

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sqllock/go-sqllock/internal/session"
	"github.com/sqllock/go-sqllock/sqllock"
)

// Format is how an ecosystem keeps its locks in a table.
type Format struct {
	Package string // of the backend
	Owner   string // what made the table, as people call it
	Table   string // with its schema in front, or without

	ID, Token, Until Column
	At               Column // when the lock was acquired; without a name there is none

	Seconds bool          // Until is in seconds since 1970, else a timestamp in UTC
	Keeps   bool          // a release leaves the row
	Hashed  bool          // ID is the SHA-256 of the name in hex
	Longest int           // characters that ID takes
	Rounds  bool          // on PostgreSQL others round their clock to the nearest second
	Skew    time.Duration // how far the clocks of others may be from the server's, either way
	Tail    string        // of CREATE TABLE on MySQL

	NewToken func() string             // a token that nobody else makes
	Process  func(token string) string // what a token tells of its holder
}

// Column is a column with its types on MySQL and on PostgreSQL.
type Column struct{ Name, MySQL, Postgres string }

// Signed makes tokens of 255 characters at most that tell which process they are of.
func Signed() string {
	p := session.Process()
	return p[:min(len(p), 200)] + " " + rand.Text()
}

// Itself is for tokens that say who they are of.
func Itself(token string) string { return token }

// name is the name of a lock as the others know it.
func (b *Backend) name(key string) (string, error) {
	name, ok := b.names[key]
	if !ok {
		name = b.prefix + key
	}
	if n := utf8.RuneCountInString(name); !b.format.Hashed && n > b.format.Longest {
		return "", fmt.Errorf("%w: %q has %d characters, and column %s takes %d", sqllock.ErrInvalidName, name, n, b.format.ID.Name, b.format.Longest)
	}
	return name, nil
}

// id is what stands for a key in the table.
func (b *Backend) id(key string) (string, error) {
	name, err := b.name(key)
	if err == nil && b.format.Hashed {
		sum := sha256.Sum256([]byte(name))
		name = hex.EncodeToString(sum[:])
	}
	return name, err
}

var (
	tables  = regexp.MustCompile(`^([0-9A-Za-z_$]{1,63}\.)?[0-9A-Za-z_$]{1,63}$`)
	columns = regexp.MustCompile(`^[0-9A-Za-z_$]{1,63}$`)
)

// Option changes a Backend that is being made.
type Option func(*Backend)

// Table names the table.
func Table(pkg, name string) Option {
	if !tables.MatchString(name) {
		panic(fmt.Sprintf("%s: WithTable(%q): a table is named by up to 63 letters, digits, _ and $, with a schema and a dot in front if need be", pkg, name))
	}
	return func(b *Backend) { b.format.Table = name }
}

// Columns names the columns; a format without At has no at.
func Columns(pkg, id, token, until string, at ...string) Option {
	names := append([]string{id, token, until}, at...)
	for _, name := range names {
		if !columns.MatchString(name) {
			panic(fmt.Sprintf("%s: WithColumns: %q: a column is named by up to 63 letters, digits, _ and $", pkg, name))
		}
	}
	return func(b *Backend) {
		f := &b.format
		f.ID.Name, f.Token.Name, f.Until.Name = id, token, until
		if len(at) > 0 {
			f.At.Name = at[0]
		}
	}
}

// Prefix puts prefix before every key.
func Prefix(pkg, prefix string) Option {
	if !utf8.ValidString(prefix) || strings.ContainsRune(prefix, 0) {
		panic(fmt.Sprintf("%s: WithPrefix(%q): it has to be text in UTF-8, without NUL", pkg, prefix))
	}
	return func(b *Backend) { b.prefix = prefix }
}

// Name has a lock of ours be one that the others know by another name.
func Name(pkg, ours, theirs string) Option {
	key, err := sqllock.Key("", ours)
	if err != nil || theirs == "" || !utf8.ValidString(theirs) || strings.ContainsRune(theirs, 0) {
		panic(fmt.Sprintf("%s: WithName(%q, %q): both have to be names, in UTF-8, without NUL", pkg, ours, theirs))
	}
	return func(b *Backend) {
		if b.names == nil {
			b.names = make(map[string]string)
		}
		b.names[key] = theirs
	}
}

// Skew sets how far the clocks of others may be from the server's.
func Skew(pkg string, d time.Duration) Option {
	if d < 0 || d > time.Hour {
		panic(fmt.Sprintf("%s: WithClockSkew(%v): it is from 0 to an hour", pkg, d))
	}
	return func(b *Backend) { b.format.Skew = d }
}
