package sqllock_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/sqllock/go-sqllock/sqllock"
)

// The keys in this table are promises: other versions and other programs rely
// on them.
func TestKey(t *testing.T) {
	for _, test := range []struct{ namespace, name, want string }{
		{"", "invoices", "invoices"},
		{"billing", "invoices", "billing:invoices"},
		{"", "with space, 'quote' and \\", "with space, 'quote' and \\"},
		{"", "a:b", "a:b"},
		{"", strings.Repeat("x", 64), strings.Repeat("x", 64)},
		{"", strings.Repeat("x", 65), strings.Repeat("x", 37) + "~j4ar72qehmfhfeojc0fra951is"},
		{"", "café", "caf_~"},
		{"", "a\x00b", "a_b~"},
		{"", "日本 x", "_ x~"},
		{"", "~00000000000000000000000000", "~00000000000000000000000000~"},
		{"a:b", "c", "a:b:c~"},
		{"ü", "c", "_:c~"},
	} {
		got, err := sqllock.Key(test.namespace, test.name)
		if err != nil {
			t.Errorf("Key(%q, %q): %v", test.namespace, test.name, err)
		}
		if strings.HasSuffix(test.want, "~") {
			if hash, ok := strings.CutPrefix(got, test.want); !ok || len(hash) != 26 {
				t.Errorf("Key(%q, %q) = %q, want %q and a hash", test.namespace, test.name, got, test.want)
			}
		} else if got != test.want {
			t.Errorf("Key(%q, %q) = %q, want %q", test.namespace, test.name, got, test.want)
		}
	}
	if _, err := sqllock.Key("billing", ""); !errors.Is(err, sqllock.ErrInvalidName) {
		t.Errorf("the empty name: got %v, want ErrInvalidName", err)
	}
}

// FuzzKey looks for two names that become one key, letter case apart, as the
// least exact of the servers compares.
func FuzzKey(f *testing.F) {
	long := strings.Repeat("x", 65)
	for _, seed := range [][3]string{
		{"", "a", "b"},
		{"", long, long + "y"},
		{"ns", "a\x00b", "a\x00c"},
		{"", "caf\u00e9", "cafe\u0301"},
		{"", "\xff", "\xfe"},
		{"", long, strings.Repeat("x", 37) + "~j4ar72qehmfhfeojc0fra951is"},
		{"", long, strings.Repeat("x", 37) + "~J4AR72QEHMFHFEOJC0FRA951IS"},
		{"a:b", "c", "b:c"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, namespace, a, b string) {
		keyA, errA := sqllock.Key(namespace, a)
		keyB, errB := sqllock.Key(namespace, b)
		if (errA != nil) != (a == "") || (errB != nil) != (b == "") {
			t.Fatalf("Key(%q): %v, Key(%q): %v; only the empty name is invalid", a, errA, b, errB)
		}
		for _, key := range []string{keyA, keyB} {
			if len(key) > sqllock.MaxKeyLen {
				t.Errorf("%q has %d bytes", key, len(key))
			}
			if i := strings.IndexFunc(key, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
				t.Errorf("%q has a character that is not printable ASCII, at %d", key, i)
			}
		}
		if keyA == keyB && a != b {
			t.Errorf("%q and %q both become %q", a, b, keyA)
		}
		// On MySQL two keys that differ in case are one. Then the names may
		// differ in no more than that.
		if a != b && strings.EqualFold(keyA, keyB) && !strings.EqualFold(a, b) {
			t.Errorf("%q and %q both become %q on a server that ignores case", a, b, keyA)
		}
		// The same name in another namespace is another lock.
		if other, err := sqllock.Key(namespace+"2", a); err == nil && other == keyA {
			t.Errorf("%q has the key %q in two namespaces", a, keyA)
		}
	})
}
