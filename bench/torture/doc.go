// Package torture hurts small fleets of real processes, in the ways that machines,
// networks and disks do, and proves from a history of all that clients saw that
// nothing was lost, nothing wrong was served, and nobody had to help.
//
// A fleet is a writer, a manager that follows, and workers, over mutual TLS and with
// signatures. While clients write and read on every node, a schedule, which is a
// function of the seed alone, says what is done to whom: a campaign (kill, net,
// damage). After every few faults the fleet is left alone; then it has to come to rest
// at one position by itself, and the history is checked.
//
// # The checker
//
// What happened in truth is the log: a client of the peer protocol reads it from the
// writer as it grows (Truth), and each entry carries the hash of the one before. The
// History has what clients were told: writes with the entry that they were
// acknowledged as, and reads with the position that they were of. Then:
//
//   - each acknowledged write is that entry, to the byte, and it is in the log once;
//     a refused one is not in it; what began after another was acknowledged is behind it;
//   - a read says what was under that key at exactly the position that came with it
//     (Qs-Pos), the position is one of the log's, and, on the writer, not before what
//     had been acknowledged; a read without a position (RESP) says what was there at some
//     position between those that were seen on that node before and after;
//   - positions of a node do not go back, unless its replica was declared to be wrong
//     in between, or emptied by the campaign;
//   - in the end all nodes serve the last position, under one hash and one digest, each
//     pair of each node is what the log says, and nobody has another snapshot of
//     one position than the others.
//
// Every value that is written tells by itself which write it is, to its last byte
// (Mark), so that damage is never mistaken for another value.
package torture
