# Two commands do everything on a Debian or Ubuntu machine that has Go and root
# or sudo: make demo and make test.

GO        ?= go
FUZZTIME  ?= 30s
TESTFLAGS ?=

# The race detector links with a C compiler.
RACE = CGO_ENABLED=1 $(GO) test -race -count=1 $(TESTFLAGS)

# What links the in-process MySQL of the demo takes ten times as long to start
# under the race detector, and starts thirty processes.
INPROCESS = ./cmd/demo ./internal/inprocess

# What runs on PostgreSQL alone, and what is built on the library. Much of it waits, as
# the rest does, so the two halves run beside each other.
BESIDE = PG|Postgres|Bouncer|Browser|Command|Examples|Gocron|Goose|Interop|Operations|OTel

# Adapters that are modules of their own, which keeps what they need out of the root's.
ADAPTERS = adapter/gocronlock adapter/otellock

.PHONY: help demo test test-short torture bench plot takeover fuzz lint format servers cc browser clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Environment: MYSQL_DSN, MARIADB_DSN and POSTGRES_DSN name servers to use in place of private ones,"
	@echo "  SKIP_SERVERS=mysql,mariadb,postgres,browser leaves them out, SQLLOCK_CACHE is where they are kept,"
	@echo "  DSN is the database of the demo, BENCH a pattern of benchmark rows, FUZZTIME how long to fuzz."
	@echo "  SEED, DURATION and SERVER (mysql, mariadb or postgres) say what make torture does; a random seed is shown."

demo: ## the invoice job on five web servers, with the lock and without (DSN=… for your own database)
	@[ -x bin/demo ] || echo "demo: building; the first time compiles an in-process MySQL, which takes a minute or two"
	@cd integration && CGO_ENABLED=0 $(GO) build -o ../bin/demo ./cmd/demo
	@bin/demo

test: cc servers browser ## all tests, with -race, on MariaDB, MySQL and PostgreSQL
	$(RACE) ./...
	for module in $(ADAPTERS); do (cd $$module && $(RACE) ./...) || exit; done
	@echo 'cd integration && $(RACE) …, in two halves'
	@cd integration && $(RACE) -timeout 20m -run '$(BESIDE)' . & beside=$$!; \
	cd integration && $(RACE) -timeout 20m -skip '$(BESIDE)' $$($(GO) list ./... | grep -v -e /cmd/demo -e /internal/inprocess); others=$$?; \
	wait $$beside && [ $$others = 0 ]
	cd integration && CGO_ENABLED=0 $(GO) test -count=1 $(TESTFLAGS) $(INPROCESS)
	@[ -z "$(SKIP_SERVERS)" ] || echo "test: NOT tested, as SKIP_SERVERS says: $(SKIP_SERVERS)"

test-short: cc ## the tests that need no server
	$(RACE) -short ./...
	for module in $(ADAPTERS); do (cd $$module && $(RACE) -short ./...) || exit; done
	cd integration && $(RACE) -short $$($(GO) list ./... | grep -v -e /cmd/demo -e /internal/inprocess)

torture: servers ## guarded work under kill -9, SIGSTOP, KILL, TCP resets and crashes (SEED, DURATION=60s, SERVER)
	@cd integration && $(GO) build -o ../bin/torture ./cmd/torture
	@bin/torture $(if $(SEED),-seed $(SEED)) $(if $(DURATION),-duration $(DURATION)) $(if $(SERVER),-server $(SERVER))

bench: servers ## what a lock costs, as a table and in bench.json (BENCH=pattern picks rows)
	@cd integration && $(GO) run ./cmd/bench -o ../bench.json

plot: servers ## grants per second against waiters, as docs/waiters.svg; takes four minutes
	@cd integration && $(GO) run ./cmd/bench -plot ../docs/waiters.svg

takeover: servers ## a hung holder and who comes next, recorded on MySQL, as docs/takeover.svg
	@cd integration && $(GO) run ./cmd/takeover -o ../docs/takeover.svg

fuzz: servers ## fuzz the names, for FUZZTIME each, without servers and with
	$(GO) test -run '^$$' -fuzz '^FuzzKey$$' -fuzztime $(FUZZTIME) ./sqllock
	cd integration && $(GO) test -run '^$$' -fuzz '^FuzzKeyOnTheServer$$' -fuzztime $(FUZZTIME) .

lint: ## golangci-lint on all modules, actionlint, and that go.mod files are tidy
	$(GO) mod tidy -diff
	cd integration && $(GO) mod tidy -diff
	$(GO) tool -modfile=tools.mod golangci-lint run ./...
	cd integration && $(GO) tool -modfile=../tools.mod golangci-lint run --config ../.golangci.yml ./...
	for module in $(ADAPTERS); do \
		(cd $$module && $(GO) mod tidy -diff && $(GO) tool -modfile=../../tools.mod golangci-lint run --config ../../.golangci.yml ./...) || exit; \
	done
	$(GO) tool -modfile=.github/tools.mod actionlint

format: ## format the code
	$(GO) tool -modfile=tools.mod golangci-lint fmt
	cd integration && $(GO) tool -modfile=../tools.mod golangci-lint fmt --config ../.golangci.yml
	for module in $(ADAPTERS); do (cd $$module && $(GO) tool -modfile=../../tools.mod golangci-lint fmt --config ../../.golangci.yml) || exit; done

servers: ## put the servers that the tests need, and PgBouncer, into the cache
	@integration/servers/install.sh

cc:
	@integration/servers/cc.sh

browser:
	@integration/servers/browser.sh

clean: ## remove what the other targets made in this folder
	rm -rf bin bench.json
