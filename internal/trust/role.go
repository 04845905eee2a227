package trust

import (
	"slices"
	"strings"
)

// Role is what somebody is for.
type Role string

const (
	RoleWorker      Role = "worker"       // holds a replica, serves reads
	RoleManager     Role = "manager"      // holds the log, takes writes, publishes snapshots
	RoleClientRead  Role = "client-read"  // reads from any node
	RoleClientWrite Role = "client-write" // reads and writes
	RoleOperator    Role = "operator"     // looks after nodes; does not see data
)

// Roles returns every role.
func Roles() []Role {
	return []Role{RoleWorker, RoleManager, RoleClientRead, RoleClientWrite, RoleOperator}
}

// NodeRoles returns the roles of nodes.
func NodeRoles() []Role { return []Role{RoleWorker, RoleManager} }

// Verb is something that a role may or may not do.
type Verb string

const (
	VerbGossip   Verb = "gossip"   // be a member
	VerbFetch    Verb = "fetch"    // log streams, manifests, pieces, the swarm
	VerbRead     Verb = "read"     // keys and values
	VerbWrite    Verb = "write"    // keys and values
	VerbSnapshot Verb = "snapshot" // have a snapshot minted and published now
	VerbScrub    Verb = "scrub"    // have everything that a node holds read and verified now
	VerbStatus   Verb = "status"   // status, health, metrics, the list of snapshots
)

// Verbs returns every verb.
func Verbs() []Verb {
	return []Verb{VerbGossip, VerbFetch, VerbRead, VerbWrite, VerbSnapshot, VerbScrub, VerbStatus}
}

// rights is the one table of who may do what; docs/security.md shows it.
var rights = map[Role][]Verb{
	RoleWorker:      {VerbGossip, VerbFetch, VerbRead, VerbStatus},
	RoleManager:     {VerbGossip, VerbFetch, VerbRead, VerbWrite, VerbSnapshot, VerbStatus},
	RoleClientRead:  {VerbRead, VerbStatus},
	RoleClientWrite: {VerbRead, VerbWrite, VerbStatus},
	RoleOperator:    {VerbSnapshot, VerbScrub, VerbStatus},
}

// May reports whether r may do v.
func (r Role) May(v Verb) bool { return slices.Contains(rights[r], v) }

// Who returns the roles that may do v.
func (v Verb) Who() []Role {
	return slices.DeleteFunc(Roles(), func(r Role) bool { return !r.May(v) })
}

// IsNode reports whether r is a role of nodes.
func (r Role) IsNode() bool { return r.in(NodeRoles()) }

func (r Role) known() bool          { return r.in(Roles()) }
func (r Role) in(roles []Role) bool { return slices.Contains(roles, r) }

func roleNames() []string {
	var names []string
	for _, r := range Roles() {
		names = append(names, string(r))
	}
	return names
}

func joinRoles(roles []Role) string {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	return strings.Join(names, " or ")
}
