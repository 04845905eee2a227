// Package edge is the border of a node: every TCP connection, in and out, goes
// through it. With credentials it is mutual TLS 1.3 (package trust), and no listener
// takes plain TCP; without, plain TCP, with the limits that do not need an identity.
//
// In: Listen returns connections whose handshake is done. Handshakes run off the
// accept loop, a bounded number at a time. When there are too many, the host with
// most of them gives way, first the connection that has kept us waiting longest. So
// strangers who open connections and say nothing, however many, cost a bounded
// amount of memory and do not keep others out. Computing for handshakes never takes
// more than half of the processors.
//
// Out: Dial keeps a circuit-breaker for each address (see breaker). A connection counts
// as a success when the other end has said something, not when the handshake is
// done: in TLS 1.3 a client is through before the server has looked at its certificate.
//
// What is between a connection and the kernel is here, too, because it is below TLS: writes
// can be collected (Cork), and a reader woken only when much of what it expects is there
// (Expect).
//
// Whoever is refused, here or above the connection, is counted by reason and logged
// once (Edge.Refused).
package edge
