// Package sim simulates the rebuild of fleets that do not fit on a machine: a
// discrete-event model of links in which the product's own code takes the decisions.
//
// What is the product's code: p2p/lease decides which pieces a worker asks which source
// for, when it takes over or hedges, and what a source grants; p2p/graph decides
// which workers connect to which, and which workers of other colos one may ask; chunker gives the
// piece length.
//
// What is a model: links (links.go), the torrent client's choice of what to request
// from a neighbour (client.go), processors (verifying a piece takes time, but nobody
// waits for a core), and gossip (everybody hears of a join or death at the same time).
// docs/bench/sim.md says what is left out and how well it reproduces real runs.
//
// A run is a function of its Options: the same seed gives the same figures.
package sim
