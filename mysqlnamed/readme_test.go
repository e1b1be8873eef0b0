package mysqlnamed_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadme: what README and docs show as Go is in the examples, so it compiles.
func TestReadme(t *testing.T) {
	examples := read(t, exampleFiles(t)...)
	blocks := strings.Split(read(t, pages(t)...), "```go\n")[1:]
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

// TestNamedTests: the tests that the documentation names as proof are there.
func TestNamedTests(t *testing.T) {
	there := make(map[string]bool)
	err := filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				there[f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	suite, err := filepath.Glob("../sqllock/locktest/*.go")
	if err != nil {
		t.Fatal(err)
	}
	subtest := regexp.MustCompile(`\{"([A-Za-z]+)", `)
	for _, match := range subtest.FindAllStringSubmatch(read(t, suite...), -1) {
		there["locktest/"+match[1]] = true
	}
	text := read(t, pages(t)...)
	named := regexp.MustCompile("`(Test[A-Z][A-Za-z]*|locktest/[A-Z][A-Za-z]*)`").FindAllStringSubmatch(text, -1)
	if len(named) < 50 {
		t.Errorf("only %d tests are named", len(named))
	}
	for _, match := range named {
		if !there[match[1]] {
			t.Errorf("there is no %s", match[1])
		}
	}
}

// exampleFiles are those of all packages.
func exampleFiles(t *testing.T) (files []string) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Base(path) == "example_test.go" {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// pages are those of the documentation.
func pages(t *testing.T) []string {
	t.Helper()
	docs, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	return append(docs, "../README.md", "../CONTRIBUTING.md")
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
