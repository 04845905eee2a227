// Package mesh is memberlist's transport over connections that say who is at
// their other end.
//
// A connection begins with a byte of the side that dialled: 'P', and the port where that
// side listens, u16: it carries packets, both ways, until nobody sent one for a while; or
// 'S': it carries one exchange, a request and its answer. Packets, requests and answers
// are frames: a length, u32, and as many bytes. Numbers are little-endian. The idea of
// packets on pooled TLS connections is Alertmanager's.
//
// A packet to a node goes only over a connection whose certificate says that node: over
// one that the node at that address made, if there is one, else over one made to it.
// It waits in a bounded queue while the connection is made, and is lost when that is
// full or nobody can be reached, as a datagram would be.
//
// What arrives is looked at before memberlist sees it:
//
//   - sizes, and how much one identity sends;
//   - the source that a ping claims, which must be the connection's;
//   - who is said to be alive: that waits until it is known at that address;
//   - who is said to be dead: that is passed on as a suspicion, which the node can
//     refute, unless it said itself that it leaves.
//
// What members tell each other beyond memberlist's own messages (user messages and the
// user's part of the state) goes to Options.Message and Options.State, together with
// who it came from, before the rest of its packet or state goes to memberlist.
package mesh
