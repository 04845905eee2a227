# The two commands of the README are `make demo` and `make test`. Both do all
# their own set-up on a Debian machine that has Go, git and make.

GO      ?= go
BIN     := bin/qs-peer
# The LMDB bindings compile LMDB's C sources, whose warnings are not ours.
export CGO_CFLAGS ?= -O2 -g -w
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.6.1
FUZZTIME ?= 30s

.PHONY: all build demo test check e2e e2e-full bench bench-swarm bench-sim fuzz setup setup-test clean

all: build

# What compiling needs: a C compiler, for LMDB.
setup:
	@.ci/setup gcc:gcc /usr/include/stdlib.h:libc6-dev

# What the tests need besides: a stock BitTorrent client and LMDB's own tools.
setup-test: setup
	@.ci/setup aria2c:aria2 mdb_dump:lmdb-utils

build: setup
	$(GO) build -o $(BIN) ./cmd/qs-peer

# A manager and eight workers on loopback, rebuilt from nothing.
demo: build
	$(BIN) demo

# Everything that must hold: static checks, all tests with the race detector,
# LMDB's other binding, and the end-to-end run on the smaller real data.
test: setup-test check
	$(GO) test -race -timeout 15m $$($(GO) list ./... | grep -v '/p2p$$')
	$(GO) test -race -timeout 15m ./p2p # alone: it holds shares and rates in real time
	$(GO) test -run 'Flood|Storm|Rate' ./internal/edge # bars on memory and time, without the race detector
	$(GO) test -tags lmdb_bmatsuo ./lmdbstore/...
	$(MAKE) --no-print-directory e2e

check: setup
	@fmt=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
		if [ -n "$$fmt" ]; then echo "gofmt would change:"; echo "$$fmt"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

# Real processes, Debian's package index: two managers, eight workers.
e2e: setup-test build
	QS_E2E=short QS_PEER=$(CURDIR)/$(BIN) $(GO) test -count=1 -v -timeout 20m ./internal/e2e

# The same with every stanza of the index and millions of small pairs.
e2e-full: setup-test build
	QS_E2E=full QS_PEER=$(CURDIR)/$(BIN) $(GO) test -count=1 -v -timeout 60m ./internal/e2e

# The figures of docs/bench.md, in `go test -bench` format: about five minutes.
# First what spans packages, with real processes, then single packages.
BENCH = $(GO) test -run '^$$' -timeout 30m
bench: setup-test build
	$(BENCH) -bench '^BenchmarkMint$$' -benchtime 5x ./bench
	$(BENCH) -bench '^BenchmarkCatchUp$$' -benchtime 1x ./bench
	QS_PEER=$(CURDIR)/$(BIN) $(BENCH) -bench '^BenchmarkRebuild$$' -benchtime 1x ./bench
	$(BENCH) -bench '^Benchmark(Append|Read)$$' ./txlog
	$(BENCH) -bench '^Benchmark(Get|Apply|BarePuts)$$' ./lmdbstore
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
