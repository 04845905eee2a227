// Package ca is a small certificate authority: enough to try a fleet over mutual
// TLS with, on one machine, in two minutes. In earnest use one that keeps its key
// in hardware and renews by itself (docs/security.md names some).
//
// An authority is a directory that only its owner enters:
//
//	ca.pem        its certificate, the same for everybody
//	ca.key        its key (PKCS #8, mode 0600)
//	trusted-keys  the public half of each manager's signing key, one a line
//	issued.jsonl  what was issued, when, to whom, until when, and into which directory
//
// and what it issues is a directory, too:
//
//	ca.pem, cert.pem, key.pem   for --tls-ca, --tls-cert, --tls-key
//	trusted-keys                of nodes: for --trusted-keys
//	signing.key                 of managers: for --signing-key, one each
//	env                         of clients: for a shell, the same three as QS_TLS_CA and so on
//
// Keys are ECDSA P-256: a handshake costs within a tenth of what it costs with
// Ed25519 (BenchmarkHandshake), and every TLS client takes them. The authority's
// certificate has its trust domain as a name constraint and a path length of 0: it
// vouches for no other domain and for no further authority. Certificates begin
// Backdate before they are issued, for clocks that are behind.
//
// Issuing into a directory again renews: a certificate for the key that is there,
// put in its place by one rename. A new key is asked for; then key and certificate
// are both complete on the disk before the two renames, so that whoever reads in
// between, which is as long as a rename takes, finds two that do not match and reads
// again (internal/trust does).
//
// Every copy of trusted-keys that was issued is kept equal to the authority's, so
// that a manager that comes later is believed by nodes that were there before.
package ca
