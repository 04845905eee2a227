// Package contender has other programs distribute a file over the network that
// our own nodes are measured on: rsync, aria2, libtorrent, UFTP and Redis, as
// Debian packages them, one source and many sinks.
//
// Each contender is a file of this package: how it is started, with which
// settings, what tells that a sink is complete. They have in common:
//   - its processes run in the hosts' namespaces, as trees, and end with the
//     network however the caller ends;
//   - the clock starts when the source is ready and the sinks' processes are
//     started, and stops for each sink when its program says that all is there;
//   - afterwards every sink's copy is compared with the source's.
package contender
