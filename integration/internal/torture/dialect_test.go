package torture

import (
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// TestPoint: what is sent on PostgreSQL is known for what it is, whatever else there
// is on the wire.
func TestPoint(t *testing.T) {
	query := func(text string) pgproto3.FrontendMessage { return &pgproto3.Query{String: text} }
	for name, test := range map[string]struct {
		sent pgproto3.FrontendMessage
		want point
	}{
		"commit":            {query("commit"), atCommit},
		"fence":             {query(`UPDATE "lock_fences" AS f SET seq=f.seq+1`), atFence},
		"evidence":          {query(`INSERT INTO "lock_fences" AS f (name)`), ""},
		"nothing":           {query(""), ""},
		"prepared":          {&pgproto3.Parse{Query: "commit"}, ""},
		"rollback":          {query("rollback"), ""},
		"close":             {&pgproto3.Terminate{}, ""},
		"committed by hand": {query("commit prepared 'x'"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			sent, err := test.sent.Encode(nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := (postgres{}).point(sent); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestUndecided: which answers to COMMIT do not tell what became of it.
func TestUndecided(t *testing.T) {
	ready := &pgproto3.ReadyForQuery{TxStatus: 'I'}
	killed := &pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P01"}
	for name, test := range map[string]struct {
		answer []pgproto3.BackendMessage
		want   bool
	}{
		"committed":                     {[]pgproto3.BackendMessage{&pgproto3.CommandComplete{CommandTag: []byte("COMMIT")}, ready}, false},
		"refused":                       {[]pgproto3.BackendMessage{&pgproto3.ErrorResponse{Severity: "ERROR", Code: "40001"}, ready}, false},
		"rolled back":                   {[]pgproto3.BackendMessage{&pgproto3.CommandComplete{CommandTag: []byte("ROLLBACK")}, ready}, false},
		"killed":                        {[]pgproto3.BackendMessage{killed}, true},
		"killed after it was committed": {[]pgproto3.BackendMessage{&pgproto3.CommandComplete{CommandTag: []byte("COMMIT")}, killed}, true},
		"nothing":                       {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			var answer []byte
			for _, m := range test.answer {
				var err error
				if answer, err = m.Encode(answer); err != nil {
					t.Fatal(err)
				}
			}
			if got := (postgres{}).undecided(answer); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// TestBind: the arguments are numbered.
func TestBind(t *testing.T) {
	if got, want := (postgres{}).bind("SELECT n FROM t WHERE a=? AND b=?"), "SELECT n FROM t WHERE a=$1 AND b=$2"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
