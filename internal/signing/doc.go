// Package signing signs small texts, and opens only those that enough trusted
// keys signed.
//
// A signed text is a signed note (https://c2sp.org/signed-note, the form of Go's
// checksum database): the text, which ends in a newline, an empty line, and one
// line for each signature:
//
//	— NAME BASE64(key hash, 4 bytes ‖ Ed25519 signature of the text, 64 bytes)
//
// Every kind of text begins with a line of its own, so that a signature under
// one is never taken for a signature under another.
//
// # Keys
//
// A key has a name, that of the manager which signs with it. A signing key file
// holds one line
//
//	PRIVATE+KEY+NAME+HASH+BASE64(1, Ed25519 seed)
//
// and may be read by its owner only. A file of trusted keys holds one line for
// each, and comments behind #:
//
//	NAME+HASH+BASE64(1, Ed25519 public key)
//
// HASH is the first four bytes of SHA-256(NAME ‖ "\n" ‖ key) in hexadecimal. No
// error of this package holds anything of what a file with a secret says.
//
// # What counts
//
// A note is opened when keys of as many different names as are required signed
// it. Two keys of one name, as while one is replaced by the other, count as one
// signer, and one key under two names is refused when the keys are read: k
// signatures are the word of k managers. Signatures that do not verify, and those
// by unknown keys, count for nothing, and spoil nothing: whoever relays a note
// can add lines to it, and must not be able to make it useless by that.
//
// Sizes are bounded before anything is parsed: MaxNote, MaxSignatures.
package signing
