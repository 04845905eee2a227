// Package bench measures what a user feels, across packages and with real files,
// sockets and processes.
//
// Swarm is the scenario behind `qs-peer bench swarm`. A site is the network that
// a run is made on: sources that hold a file, sinks that want it, links between
// them. Our own nodes run on it in a round; whatever else distributes a file, to
// be compared, gets a site of the same options. fluid.go says how fast it could
// be done at the least, curve.go draws how it went.
//
// What is in tests here is in `go test -bench` format (benchstat reads it), and
// `make bench` runs it together with the benchmarks of single packages.
//
// A timing is only compared within one run: each benchmark measures its own
// yardstick (bare fsync calls, bare LMDB puts, mdb_env_copy2) beside it and
// reports the ratio. QS_BENCH_SCALE (default 1) scales the amount of data.
package bench
