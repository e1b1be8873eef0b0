package testdb_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"

	"github.com/sqllock/go-sqllock/integration/internal/testdb"
)

const childEnv = "SQLLOCK_TESTDB_CHILD"

// TestMain is also the process that TestKilledOwner kills.
func TestMain(m *testing.M) {
	kind := testdb.Kind(os.Getenv(childEnv))
	if kind == "" {
		os.Exit(m.Run())
	}
	s, err := testdb.Start(context.Background(), kind)
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(s.DSN)
	select {}
}

func needed(t *testing.T, kind testdb.Kind) {
	t.Helper()
	if testing.Short() || kind.Skipped() || kind.EnvDSN() != "" {
		t.Skip("no private instance is wanted")
	}
}

// TestKilledOwner: kill -9 of the process that started a server ends the server
// and removes its folder.
func TestKilledOwner(t *testing.T) {
	for _, kind := range testdb.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			needed(t, kind)
			tmp := t.TempDir()
			child := exec.CommandContext(t.Context(), os.Args[0])
			child.Env = append(os.Environ(), childEnv+"="+string(kind), "TMPDIR="+tmp)
			out, err := child.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			dsn, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			dsn = strings.TrimSpace(dsn)
			db, err := sql.Open("mysql", dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close() //nolint:errcheck // nothing depends on it
			if err := db.PingContext(t.Context()); err != nil {
				t.Fatalf("the server of %s: %v", dsn, err)
			}
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = child.Wait()
			addr := strings.TrimSuffix(strings.TrimPrefix(dsn, "root@tcp("), ")/")
			eventually(t, "the server to end", func() bool {
				c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
				if err == nil {
					_ = c.Close()
				}
				return err != nil
			})
			eventually(t, "the folder to be removed", func() bool {
				left, err := filepath.Glob(filepath.Join(tmp, "sqllock-*"))
				if err != nil {
					t.Fatal(err)
				}
				return len(left) == 0
			})
		})
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestStop ends the server at once, and a server that does not start is told
// with its log.
func TestStop(t *testing.T) {
	needed(t, testdb.MariaDB)
	s, err := testdb.Start(t.Context(), testdb.MariaDB)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("Stop: %v", err)
	}
	_, err = testdb.Start(t.Context(), testdb.MariaDB, "--no-such-option")
	if err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Errorf("a server that does not start: %v", err)
	}
}

// TestEnvironment: a DSN that is set wins, and it is an error if nobody answers.
func TestEnvironment(t *testing.T) {
	t.Setenv("MYSQL_DSN", "root@tcp(127.0.0.1:1)/")
	if _, err := testdb.Open(t.Context(), testdb.MySQL); err == nil || !strings.Contains(err.Error(), "MYSQL_DSN") {
		t.Errorf("a DSN that leads nowhere: %v", err)
	}
	t.Setenv("MYSQL_DSN", "")
	t.Setenv("SQLLOCK_CACHE", t.TempDir())
	if _, err := testdb.Open(t.Context(), testdb.MySQL); !errors.Is(err, testdb.ErrNotInstalled) || !strings.Contains(err.Error(), "make servers") {
		t.Errorf("an empty cache: %v", err)
	}
	t.Setenv("SKIP_SERVERS", "postgres, mysql")
	if !testdb.MySQL.Skipped() || testdb.MariaDB.Skipped() {
		t.Error("SKIP_SERVERS is misread")
	}
}

// script runs one of the scripts beside the tests with an environment that has
// nothing but what is given.
func script(t *testing.T, name string, args []string, env ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join("..", "..", "servers", name), args...)
	cmd.Env = append([]string{"HOME=" + t.TempDir()}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// path makes a folder of programs: links to those of the system that are named,
// and scripts.
func path(t *testing.T, scripts map[string]string, system ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range system {
		target, err := exec.LookPath(name)
		if err != nil {
			t.Skip(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	return "PATH=" + dir
}

var shellTools = []string{"sh", "mkdir", "mktemp", "rm", "mv", "tr", "cat", "id", "grep", "dirname", "chmod", "ln"}

// TestInstallWithoutAnything: the message says what to do.
func TestInstallWithoutAnything(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/mysqld"); err == nil {
		t.Skip("this machine has a server where the script looks for one")
	}
	out, err := script(t, "install.sh", []string{"mysql"}, path(t, nil, shellTools...))
	if err == nil {
		t.Fatalf("it should fail: %s", out)
	}
	for _, want := range []string{"brew install mysql", "MYSQL_DSN=", "SKIP_SERVERS=mysql", "start Docker"} {
		if !strings.Contains(out, want) {
			t.Errorf("the message should have %q:\n%s", want, out)
		}
	}
	out, err = script(t, "install.sh", nil, path(t, nil, shellTools...), "SKIP_SERVERS=mysql", "MARIADB_DSN=root@tcp(127.0.0.1:1)/")
	if err != nil || !strings.Contains(out, "left out") || !strings.Contains(out, "the DSN from the environment is used") {
		t.Errorf("with nothing to do: %v\n%s", err, out)
	}
	if out, err = script(t, "install.sh", []string{"oracle"}, path(t, nil, shellTools...)); err == nil || !strings.Contains(out, "no server called oracle") {
		t.Errorf("an unknown server: %v\n%s", err, out)
	}
}

// TestInstallWithDocker: where only Docker is there, the image is noted, and an
// instance is a container that is killed at the end.
func TestInstallWithDocker(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/mysqld"); err == nil {
		t.Skip("this machine has a server where the script looks for one")
	}
	cache := t.TempDir()
	out, err := script(t, "install.sh", []string{"mysql"}, path(t, map[string]string{"docker": "exit 0"}, shellTools...), "SQLLOCK_CACHE="+cache)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	image, err := os.ReadFile(filepath.Join(cache, "mysql", "docker"))
	if err != nil || strings.TrimSpace(string(image)) != "mysql:8.4" {
		t.Errorf("image %q, %v", image, err)
	}
	// The stand-in for Docker ends at once, and tells what it was asked.
	told := filepath.Join(t.TempDir(), "told")
	t.Setenv("SQLLOCK_CACHE", cache)
	dir := strings.TrimPrefix(path(t, map[string]string{"docker": `echo "$@" >>"` + told + `"; echo no daemon; exit 1`}), "PATH=")
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if _, err := testdb.Start(t.Context(), testdb.MySQL); err == nil || !strings.Contains(err.Error(), "no daemon") {
		t.Errorf("a container that does not start: %v", err)
	}
	said, err := os.ReadFile(told)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"run --rm --name sqllock-mysql-", "-p 127.0.0.1:", ":3306", "mysql:8.4", "kill sqllock-mysql-"} {
		if !strings.Contains(string(said), want) {
			t.Errorf("docker should have been told %q:\n%s", want, said)
		}
	}
}

// TestNoCompiler: the message says what to install.
func TestNoCompiler(t *testing.T) {
	out, err := script(t, "cc.sh", nil, path(t, map[string]string{"go": "echo no-such-cc"}, "sh", "id"))
	if err == nil || !strings.Contains(out, "apt-get install gcc") || !strings.Contains(out, "xcode-select") {
		t.Errorf("%v\n%s", err, out)
	}
}
