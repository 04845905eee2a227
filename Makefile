# The two commands of the README are `make demo` and `make test`. Both do all
# their own set-up on a Debian machine that has Go, git and make.

GO      ?= go
BIN     := bin/qs-peer
# The LMDB bindings compile LMDB's C sources, whose warnings are not ours.
export CGO_CFLAGS ?= -O2 -g -w
# What the torrent library would bring along and nothing here uses, piece completion in
# SQLite and Bolt and a uTP in C++: it would be compiled longer than all the rest.
TAGS := nosqlite,noboltdb,disable_libutp
export GOFLAGS := $(filter-out -tags=%,$(shell $(GO) env GOFLAGS)) -tags=$(TAGS)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.6.1
FUZZTIME ?= 30s

.PHONY: all build demo test check fleets e2e e2e-full torture torture-short bench bench-swarm bench-sim fuzz setup setup-test clean

all: build

# What compiling needs: a C compiler, for LMDB.
setup:
	@.ci/setup gcc:gcc /usr/include/stdlib.h:libc6-dev

# What the tests need besides: a stock BitTorrent client, LMDB's own tools, and
# strace, which makes system calls fail.
setup-test: setup
	@.ci/setup aria2c:aria2 mdb_dump:lmdb-utils strace:strace

build: setup
	$(GO) build -o $(BIN) ./cmd/qs-peer

# A manager and eight workers on loopback, rebuilt from nothing.
demo: build
	$(BIN) demo

# Everything that must hold: static checks, all tests with the race detector,
# LMDB's other binding, and the end-to-end run on the smaller real data.
#
# GOTEST leaves out go vet, which has run by then.
GOTEST = $(GO) test -vet=off
# Most tests wait most of the time, so more packages than there are cores run at once, those
# that take longest first. Not with them: what fleets runs, what has but one goroutine,
RACE = ./internal/peer ./cmd/qs-peer ./p2p ./lmdbstore/... \
	$$($(GO) list ./... | grep -v -e '/internal/e2e' $(SINGLE:./%=-e '/%$$'))
SINGLE := ./bench/sim ./p2p/graph
# and tests of p2p and bench/lab that hold shares and rates in real time. No other package has
# tests of these names.
ALONE := ^Test(RateIsHeld|RepairBeforeRebuild|PiecesWithinBudget|FirstCopies|CopiesPerColo|OwnColoFirst|HolderStops|ManagerLeavesAfterOneCopy|SeederLeavesAfterOneCopy)$$
test: setup-test check
	$(GOTEST) $(SINGLE)
	$(GOTEST) -race -p 4 -timeout 15m -skip '$(ALONE)' $(RACE)
	$(GOTEST) -p 1 -run '$(ALONE)' ./p2p ./bench/lab # the detector would make late what is not
	$(GOTEST) -run 'Flood|Storm|Rate' ./internal/edge # bars on memory and time, without the race detector
	$(GOTEST) -run 'Abuse' ./internal/peer # the same
	$(GO) test -tags lmdb_bmatsuo ./lmdbstore/...
	$(MAKE) --no-print-directory fleets

check: setup
	@fmt=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
		if [ -n "$$fmt" ]; then echo "gofmt would change:"; echo "$$fmt"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

# What e2e and torture-short run, at once: real processes wait most of the time. How long
# others wait while a node is attacked is measured alone.
FLEETS = QS_E2E=short QS_PEER=$(CURDIR)/$(BIN) $(GOTEST) -count=1 -v
fleets: setup-test build
	$(FLEETS) -timeout 20m -p 3 -parallel 6 -skip '^TestAbuse$$' ./internal/e2e/... ./bench/torture
	$(FLEETS) -timeout 10m -run '^TestAbuse$$' ./internal/e2e

# Real processes, Debian's package index: two managers, eight workers.
e2e: setup-test build
	QS_E2E=short QS_PEER=$(CURDIR)/$(BIN) $(GOTEST) -count=1 -v -timeout 20m -parallel 6 ./internal/e2e/...

# The same with every stanza of the index and millions of small pairs.
e2e-full: setup-test build
	QS_E2E=full QS_PEER=$(CURDIR)/$(BIN) $(GO) test -count=1 -v -timeout 60m ./internal/e2e/...

# Fleets of real processes are hurt, and what their clients saw is checked: a few faults of
# each kind, and as many as docs/faults.md tells of (about 15 minutes). Those of the
# network need root.
torture-short: build
	QS_PEER=$(CURDIR)/$(BIN) $(GOTEST) -parallel 3 -run '^TestCampaigns$$' -count=1 -v -timeout 10m ./bench/torture

torture: build
	$(BIN) bench kill --count 1000 --fleets 3
	$(BIN) bench damage --count 300 --fleets 2
	$(BIN) bench net --count 200 --fleets 2
	$(GO) test -count=1 -v -timeout 30m ./internal/powercut -args -cuts 1000

# The figures of docs/bench.md, in `go test -bench` format: about five minutes.
# First what spans packages, with real processes, then single packages.
BENCH = $(GO) test -run '^$$' -timeout 30m
bench: setup-test build
	$(BENCH) -bench '^BenchmarkMint$$' -benchtime 5x ./bench
	$(BENCH) -bench '^BenchmarkCatchUp$$' -benchtime 1x ./bench
	QS_PEER=$(CURDIR)/$(BIN) $(BENCH) -bench '^BenchmarkRebuild$$' -benchtime 1x ./bench
	$(BENCH) -bench '^Benchmark(Append|Read)$$' ./txlog
	$(BENCH) -bench '^Benchmark(Get|Apply|BarePuts|Open)$$' ./lmdbstore
	$(BENCH) -bench '^BenchmarkScrub$$' -benchtime 30x ./lmdbstore
	$(BENCH) -bench '^Benchmark(Stream|Swarm8)$$' -benchtime 1x ./p2p

# How fast a colo of empty workers is rebuilt, on links of given rates: writes
# docs/bench/swarm.md and its pictures. Needs root; about 50 minutes with RUNS=5.
# What it compares us with comes from Debian; none of it has to run as a service.
RUNS ?= 5
bench-swarm: build
	@.ci/setup rsync:rsync aria2c:aria2 uftp:uftp redis-server:redis-server \
		/usr/share/doc/python3-libtorrent:python3-libtorrent
	.ci/bench-swarm $(CURDIR)/$(BIN) docs/bench $(RUNS)

# Simulated fleets, and simulations beside real runs, into docs/bench/sim.md. Real runs need root.
bench-sim: build
	.ci/bench-sim $(CURDIR)/$(BIN) docs/bench/sim.md

# Every fuzz target, FUZZTIME each.
fuzz: setup
	@set -e; for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "== $$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

clean:
	rm -rf bin dist
