package main

import (
	"strings"
	"testing"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

func TestPlay(t *testing.T) {
	for _, kind := range testdb.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			if testing.Short() || kind.Skipped() {
				t.Skip("needs a server")
			}
			if kind.EnvDSN() != "" {
				t.Skip("makes tables, so it needs an instance of its own")
			}
			s, err := testdb.Start(t.Context(), kind)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Stop() //nolint:errcheck // it ends with the process
			dsn, err := database(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			if err := play(t.Context(), dsn, &out); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{
				"same session: the holder that hung was rolled back, the next one committed: 99 left\n",
				"fenced: the holder with the smaller token was refused, the next one committed: 98 left\n",
				"unknown outcome: 200 sessions killed around their COMMIT; every answer was right\n",
			} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in\n%s", want, out.String())
				}
			}
		})
	}
}
