package mysqlnamed_test

import (
	"os"
	"strings"
	"testing"
)

// TestReadme: what the README shows as Go is in the examples, so it compiles.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var examples []byte
	for _, file := range []string{"example_test.go", "../table/example_test.go"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		examples = append(examples, b...)
	}
	blocks := strings.Split(string(readme), "```go\n")[1:]
	if len(blocks) == 0 {
		t.Error("the README has no example")
	}
	for _, block := range blocks {
		code, _, _ := strings.Cut(block, "```")
		found := false
		for _, tabs := range []string{"\t", "\t\t"} {
			indented := tabs + strings.ReplaceAll(strings.TrimSpace(code), "\n", "\n"+tabs)
			found = found || strings.Contains(string(examples), strings.ReplaceAll(indented, "\n"+tabs+"\n", "\n\n"))
		}
		if !found {
			t.Errorf("not in the examples:\n%s", code)
		}
	}
}
