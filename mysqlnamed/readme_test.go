package mysqlnamed_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadme: what README and docs show as Go is in the examples, so it compiles.
func TestReadme(t *testing.T) {
	examples := read(t, "example_test.go", "../table/example_test.go", "../txguard/example_test.go", "../pgadvisory/example_test.go",
		"../adapter/gooselock/example_test.go", "../adapter/gocronlock/example_test.go")
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(read(t, append(pages, "../README.md")...), "```go\n")[1:]
	if len(blocks) < 6 {
		t.Errorf("there are %d examples only", len(blocks))
	}
	for _, block := range blocks {
		code, _, _ := strings.Cut(block, "```")
		found := false
		for _, tabs := range []string{"\t", "\t\t"} {
			indented := tabs + strings.ReplaceAll(strings.TrimSpace(code), "\n", "\n"+tabs)
			found = found || strings.Contains(examples, strings.ReplaceAll(indented, "\n"+tabs+"\n", "\n\n"))
		}
		if !found {
			t.Errorf("not in the examples:\n%s", code)
		}
	}
}

func read(t *testing.T, files ...string) string {
	t.Helper()
	var all []byte
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return string(all)
}
