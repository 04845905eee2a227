package gossip

import "time"

// What a view knows more when records are signed.

// signedSelf returns this node's record, signed with the certificate it has now if
// records are signed.
func (v *view) signedSelf(now time.Time) (record, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	err := v.signSelf(now)
	return v.self, err
}

// signSelf signs the own record if it is not. v.mu is held.
func (v *view) signSelf(now time.Time) error {
	if v.notary == nil {
		return nil
	}
	if v.self.signature != nil {
		if !v.notary.replaced(v.self.chain) {
			return nil
		}
		v.self.counter++
		v.encodeSelf()
	}
	return v.notary.sign(&v.self, now)
}

// outdated reports whether this node has another certificate than its record.
func (v *view) outdated() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.self.signature != nil && v.notary.replaced(v.self.chain)
}

// where reports whether a node was heard from an address, and whether it is a
// member at any.
func (v *view) where(name, addr string) (there, known bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	k := key{name, addr}
	return v.records[k] != nil || k == v.self.key, v.members[name] != nil
}

// left reports whether a member said that it leaves.
func (v *view) left(name string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := v.members[name]
	if m == nil {
		return false
	}
	h := v.records[m.key]
	return h != nil && h.leaving
}

// addrOf returns the gossip address of a member, or nothing.
func (v *view) addrOf(name string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.members[name]; m != nil {
		return m.addr
	}
	return ""
}

// introduced reports whether k may be a member: with signed records, only who was
// heard.
func (v *view) introduced(k key) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.notary == nil || v.records[k] != nil {
		return true
	}
	return k.name == v.self.name && (v.self.addr == "" || v.self.addr == k.addr)
}
