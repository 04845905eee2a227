// Package lab is a network in a box: hosts that are network namespaces, on
// bridges that stand for colos, over links whose rates are held by the kernel's
// token bucket (tbf).
//
//	host ── tbf ──► ┐                                ┌ ◄── tbf ── host
//	                ├ colo bridge ═tbf═ core bridge ═┤
//	host ◄── tbf ── ┘                                └ ── tbf ──► host
//
// All bridges and all ports are in one more namespace, the switch. Nothing is
// put into the namespace that the caller runs in: no bridge, no address, no
// route. Namespaces have no names: open descriptors of this process and the
// processes in them are all that keeps them, so when the caller ends, however it
// ends, the kernel takes the network away, and the processes with it.
//
// It needs CAP_NET_ADMIN and CAP_SYS_ADMIN. It is the one home of the netlink
// libraries.
package lab
