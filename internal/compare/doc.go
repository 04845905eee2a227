// Package compare finds out whether the copies of a dataset hold the same pairs.
//
// The hash chain proves that all nodes apply the same entries, not that the same
// pairs come out: a disk, a memory or a program may be wrong. So each node keeps a
// digest of all its pairs (package lmdbstore) and says it together with the
// position it is of: a Point. Everybody says the newest in gossip and in log streams, and the
// writer signs its own. Whoever reaches the position compares it with
// the own copy's digest there.
//
// # Who is wrong
//
// That two copies differ does not tell which is damaged. A Comparer asks others
// what they had after that entry, and judges:
//
//   - The writer's word decides: where heads are signed its signature, otherwise what
//     it says itself. But if it stands alone, at least two others having what this
//     node has and nobody what the writer has, it is the writer's copy that is in doubt:
//     that is an alarm, and takes nobody out of service.
//   - Where nothing is signed, two others who agree with each other against this
//     node decide, too, if nobody has what this node has.
//   - Nobody else's word takes a node out of service: anybody may say anything.
//
// A copy that was made anew from what is verified and differs again, several
// times in a row, is not the one that is wrong.
//
// # The entry at which they part
//
// Copies that differ go on differing, because a digest is of the one before and
// of what an entry changed. So the first entry after which they differ is found by
// a binary search: a dozen questions, as far back as both remember.
//
// # Managers
//
// Two managers that differ, in history or in content, must not publish
// snapshots: one of them would hand its damage on. Stopped tells so, at both, until
// they agree again.
package compare
