// Package replica is the life of one copy of the dataset:
//
//	joining → bootstrapping → catching-up → serving
//	             ↑________________|____________|   when no log reaches back any more
//
// Three activities, which this package starts, stops and restarts:
//
//	follow   upstream's log → own log       (a worker, a following manager)
//	apply    own log → store                (everybody; the writer has only this)
//	rebuild  a snapshot → a new generation  (when following is impossible)
//
// The own log is always ahead of or level with the copy that is being caught
// up: an entry is on stable storage in the log before it is applied. Follow and
// apply are coupled by the log alone, so receiving, the log's fsync and the
// store's commit overlap. While a new generation is prepared the old one, if it
// holds anything and did not diverge, keeps serving.
//
// The package has no sockets, no files and no cgo: it acts through small
// interfaces, and takes time from package time, so that its tests run whole
// lives in testing/synctest.
//
// # Crashes
//
// What is durable is the store (data and position in one transaction), the log,
// and the snapshot files; all else is found out again. Two rules make every
// crash harmless:
//
//  1. The store is the truth and a follower's log is a cache. At start, a log
//     that does not hold the store's position, or holds another entry there, is
//     begun anew at that position.
//  2. Only Store.Apply and Generation.Activate change what is served. Both are
//     atomic, and both lead from one position of the dataset's history to
//     another.
//
// So a crash while following leaves a log at or ahead of the store: apply goes
// on. A crash while fetching leaves a partial file, which the next fetch
// resumes. A crash while a generation is installed or caught up leaves a
// generation that is not current, which the store removes at open, and perhaps
// a log that was begun anew at the snapshot's position: by rule 1 it is begun
// anew at the store's; following is as impossible as it was before, and the
// rebuild starts over with the snapshot already on disk. A crash after Activate
// leaves the store at a position that the log holds.
//
// On the writer the log is the truth and a store that does not fit it means
// that acknowledged entries were lost: Run refuses to start.
//
// # Whom to follow
//
// All nodes sort the members of their colo in the same order: the writer,
// managers, workers by a hash of their names. A node follows somebody before it
// in that order, eight to one, so the links are a tree; the first of a colo
// without managers follows the writer. When its place in the tree does not work
// a node takes the next best, the writer always among them, and after a while
// tries to go back. A link that yields nothing though somebody has news is given
// up, so even a cycle, which can arise when members see different fleets, lasts
// seconds.
//
// # Divergence
//
// An upstream that holds another entry at our position contradicts us; one that
// does not reach it is merely behind, and no more is said. A contradiction takes
// the replica out of service when the writer says it, or when two upstreams do
// and nobody agreed with us in between. After the first contradiction the
// writer is asked next if it can be reached, so the second rule decides only
// when the writer is away, and one lying or stale worker never decides.
package replica
