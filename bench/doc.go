// Package bench measures what a user feels, across packages and with real
// files, sockets and processes, in `go test -bench` format (benchstat reads it).
// `make bench` runs it together with the benchmarks of single packages.
//
// A timing is only compared within one run: each benchmark measures its own
// yardstick (bare fsync calls, bare LMDB puts, mdb_env_copy2) beside it and
// reports the ratio. QS_BENCH_SCALE (default 1) scales the amount of data.
package bench
