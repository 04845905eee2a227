// Package trust says who is on the other end of a connection, and what it may do.
//
// Every node and every client has one certificate, of an authority that the fleet
// shares, and in it one identity: a SPIFFE ID
//
//	spiffe://<trust-domain>/qs/<role>/<colo>/<name>
//
// as the only URI among its subject alternative names (SPIFFE's X509-SVID standard,
// section 2). Role, colo and name are what the certificate says, never what a message
// claims. Host names do not matter: addresses come from gossip.
//
// A Role may do what the one table of Role.May allows.
//
// Credentials are one node's certificate, key and authorities. They make TLS
// configurations (1.3 only, certificates on both sides, no session tickets, so that
// each connection is checked anew), follow the files when those change, and sign
// messages that travel further than one connection.
package trust
