// Package powercut is the campaign of power cuts, and the tape recorder that it needs
// for LMDB. Only tests import it: it takes the place of some of the C library's
// functions in the program that it is linked into.
//
// What is written through durable.FS can be cut in memory (package faultfs). LMDB
// writes by itself. So a Tape records what it writes to a file and when it syncs it,
// byte for byte, and then knows what the file may hold had the power been cut
// at any moment of the recording.
//
// The model of the disk is faultfs's: of what was not synced each sector may be there
// or not, in any order, and the file's length may be there without its content. But
// a sector is written wholly or not at all: LMDB's meta pages rely on that, as its
// author says (H. Chu, "MDB: A Memory-Mapped Database and Backend for OpenLDAP",
// LDAPCon 2011).
package powercut
