// Package lease decides who asks whom for which piece of a snapshot, so that
// each piece enters a colo once and no uplink rests while a colo needs data.
//
// It is pure: no input or output, no clock, no goroutine; time is passed in. A
// node drives it with what really happens, the simulator with what it models,
// so both take the same decisions.
//
// # Leases
//
// The workers of a colo that fetch the same snapshot share its pieces out among
// themselves by rendezvous hashing (Thaler and Ravishankar, "Using name-based
// mappings to increase hit rates", 1998): for each piece the live fetchers are
// ranked by a hash of name and piece, and the first of them leases it. When
// somebody joins or leaves, only the pieces that are now his, or were, change hands.
//
// A worker asks sources, which are outside its colo's swarm (managers, other
// colos' workers), for the pieces that it leases, and gets everything else from
// the others of its colo. Each worker goes through its leases in an order of
// its own (Plan.Next).
//
// A worker whose own leases are used up takes over others', from the far
// end of the order of the one that has most left to do: so what a slow, stalled or dead
// holder does not get to is done by those who are free.
//
// A worker whose own link is slow, by what it has of its share and the colo of the others',
// or because nobody gets from it what it brought in, leaves its leases to the others while
// they bring something in: what it gets first, the colo gets late. So does one that
// has brought in more than the colo has passed on, until that is done.
//
// # Grants
//
// A worker's view of the others is late and incomplete, so the source has
// the last word. It hands a piece to one worker of a colo at a time (Grants), and refuses
// it to others until that one had time to receive it and pass it on, or is gone. A refusal
// says that the colo has the piece, or is about to.
//
// docs/decisions/0006-first-copy-leases.md says what was tried.
//
// # Sources
//
// Sources have a cost. A piece is asked from the cheapest source that has it; equal ones
// share the pieces by rendezvous hashing, and one that has nothing left to do for
// a worker helps the others out.
//
// With many colos, each is the home of some pieces, by rendezvous hashing, and asks
// managers for these only. The others come from a few workers of other colos, the same for all
// workers of a colo (Gateways). Only when nothing comes from there any more, the colo that
// is next in rank asks the managers for a piece, and later the one after it.
//
// # The tail
//
// What the colo has but does not deliver is asked from a source after all: a
// piece that only one worker has and does not pass on, by one other; a few last ones,
// or any when nothing comes at all, by whoever lacks them.
package lease
