package sqllock

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strconv"
	"strings"
)

// MaxKeyLen is the length in bytes that no key exceeds. It is the smallest
// limit among the servers: MySQL takes 64 characters.
const MaxKeyLen = 64

const (
	hashLen   = 26 // 128 bits in base32
	hashMark  = '~'
	prefixLen = MaxKeyLen - hashLen - 1
)

// Key returns the name by which the server knows a lock.
//
// The full name is name, or namespace + ":" + name where a namespace is given.
// A full name of 1 to 64 printable ASCII characters is its own key, so that
// other programs on the same server can take part by using it. Any other full
// name, one that ends in a space (which columns of a table may ignore), one with
// a namespace that itself has a colon, and one that looks like the result of the
// following, becomes the first 37 characters of the full name
// (each run of other characters replaced by one "_"), "~", and 26 characters of
// lower-case base32 (RFC 4648 "extended hex") of the first 128 bits of
//
//	SHA-256(decimal length of namespace in bytes + ":" + namespace + name)
//
// The rule is stable: it does not change between versions of this package.
// Within a namespace two different names never have one key (short of a
// collision of hashes), and neither do names in two different namespaces; but
// "a:b" without a namespace is "b" in the namespace "a". MySQL, and
// package table, compare keys without regard to letter case, so there "Job" and "job"
// exclude each other; others compare bytes.
//
// Key returns [ErrInvalidName] for the empty name.
func Key(namespace, name string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("%w: the name is empty", ErrInvalidName)
	}
	full := name
	if namespace != "" {
		full = namespace + ":" + name
	}
	if len(full) <= MaxKeyLen && printable(full) && !hashed(full) && !strings.HasSuffix(full, " ") && !strings.Contains(namespace, ":") {
		return full, nil
	}
	sum := sha256.Sum256([]byte(strconv.Itoa(len(namespace)) + ":" + namespace + name))
	hash := base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16])
	return readable(full) + string(hashMark) + strings.ToLower(hash), nil
}

func isPrintable(c byte) bool { return c >= ' ' && c <= '~' }

func printable(s string) bool {
	for i := range len(s) {
		if !isPrintable(s[i]) {
			return false
		}
	}
	return true
}

// hashed reports whether s has the form of a key with a hash, in either letter
// case. Such a name is hashed itself, or it could be the key of another one.
func hashed(s string) bool {
	mark := len(s) - hashLen - 1
	if mark < 0 || s[mark] != hashMark {
		return false
	}
	for _, c := range []byte(strings.ToLower(s[mark+1:])) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'v') {
			return false
		}
	}
	return true
}

func readable(s string) string {
	prefix := make([]byte, 0, prefixLen)
	for i := 0; i < len(s) && len(prefix) < prefixLen; i++ {
		switch {
		case isPrintable(s[i]):
			prefix = append(prefix, s[i])
		case i == 0 || isPrintable(s[i-1]):
			prefix = append(prefix, '_')
		}
	}
	return string(prefix)
}
