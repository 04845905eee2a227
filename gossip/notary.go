package gossip

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/gossip/internal/mesh"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// purpose is what a record's signature is good for.
const purpose = "gossip record"

const (
	// chainYoung is how long a chain is sent along after this node learned it; then
	// those who talk to this node know it, or ask for it by a full exchange.
	chainYoung = 5 * time.Second
	// recheck is how long a verified chain counts without being verified again:
	// an authority may be gone since.
	recheck = 10 * time.Minute
	// chainsPerName are kept: a certificate and the one that it replaced.
	chainsPerName = 2
	maxChains     = 16 << 10
	// ownerRate and ownerBurst are how many versions of its record a node may have
	// others verify, a second. It makes five, at most.
	ownerRate, ownerBurst = 10, 50
)

// errUnknownChain means that a record came with the hash of certificates that this
// node does not have.
var errUnknownChain = errors.New("certificates that are not known here")

// errStale means that a record is no news.
var errStale = errors.New("record is known")

// chain is a verified chain of certificates.
type chain struct {
	raw     []byte // as in an envelope
	hash    chainHash
	leaf    *x509.Certificate
	id      trust.Identity
	learned time.Time
	good    time.Time // until then, without being verified again
	owner   *rate.Limiter
}

// notary signs this node's records, and checks that those of others are of whom
// they say.
type notary struct {
	creds *trust.Credentials

	mu     sync.Mutex // guards what follows
	chains map[chainHash]*chain
}

func newNotary(creds *trust.Credentials) *notary {
	return &notary{creds: creds, chains: make(map[chainHash]*chain)}
}

// sign puts the signature and the chain of this node into r, its own record.
func (n *notary) sign(r *record, now time.Time) error {
	certs, signature, err := n.creds.SignWithChain(purpose, r.raw)
	if err != nil {
		return fmt.Errorf("sign the own record: %w", err)
	}
	raw, err := encodeChain(certs)
	if err != nil {
		return fmt.Errorf("sign the own record: %w", err)
	}
	if len(signature) > maxSignature {
		return fmt.Errorf("sign the own record: a signature of %d bytes; at most %d are allowed", len(signature), maxSignature)
	}
	r.signature = signature
	if r.chain == nil || !bytes.Equal(r.chain.raw, raw) {
		r.chain = &chain{raw: raw, hash: sha256.Sum256(raw), learned: now}
	}
	return nil
}

// replaced reports whether this node has another certificate than c.
func (n *notary) replaced(c *chain) bool {
	raw, err := encodeChain(n.creds.Chain())
	return err == nil && !bytes.Equal(raw, c.raw)
}

// open returns the record in an envelope if its owner signed it and if it says of
// its owner what the owner's certificate says. Those that known reports are not
// checked: errStale. Other errors are errUnknownChain, errNewerRecord and
// *trust.RefusedError.
func (n *notary) open(b []byte, known func(record) bool, now time.Time) (record, error) {
	e, err := decodeEnvelope(b)
	if err != nil {
		return record{}, err
	}
	r, err := decodeRecord(e.record)
	switch {
	case errors.Is(err, errNewerRecord):
		return record{}, err
	case err != nil:
		return record{}, &trust.RefusedError{Reason: badRecord, Err: err}
	case known(r):
		return record{}, errStale
	}
	c, err := n.chain(&e, now)
	if err != nil {
		return record{}, err
	}
	if err := agree(&r.facts, c.id); err != nil {
		return record{}, err
	}
	if c.owner.TokensAt(now) < 1 {
		return record{}, refuse(mesh.Flood, "%s makes more than %d records a second", r.name, ownerRate)
	}
	if err := trust.VerifySignature(c.leaf, purpose, r.raw, e.signature); err != nil {
		return record{}, refuse(trust.ReasonOf(err), "record of %s: %w", r.name, err)
	}
	c.owner.AllowN(now, 1) // only its owner uses it up
	r.signature, r.chain = bytes.Clone(e.signature), c
	return r, nil
}

// agree says what facts claim that their owner's certificate does not say.
func agree(f *Facts, id trust.Identity) error {
	switch {
	case f.Name != id.Name:
		return refuse(trust.WrongName, "a record says that it is of %s, and its certificate is of %s", f.Name, id.Name)
	case trust.Role(f.Role) != id.Role:
		return refuse(trust.WrongRole, "the record of %s says %s, and its certificate %s", f.Name, f.Role, id.Role)
	case f.Writer && id.Role != trust.RoleManager:
		return refuse(trust.WrongRole, "the record of %s says that it takes writes, and its certificate that it is a %s", f.Name, id.Role)
	case f.Colo != id.Colo:
		return refuse(wrongColo, "the record of %s says colo %s, and its certificate %s", f.Name, f.Colo, id.Colo)
	}
	return nil
}

// chain returns the verified chain of an envelope.
func (n *notary) chain(e *envelope, now time.Time) (*chain, error) {
	n.mu.Lock()
	c := n.chains[e.hash]
	n.mu.Unlock()
	switch {
	case c != nil && now.Before(c.good):
		return c, nil
	case c != nil && e.chain == nil:
		e.chain = c.raw
	case e.chain == nil:
		return nil, errUnknownChain
	}
	leaf, id, err := n.creds.VerifyChain(decodeChain(e.chain))
	if err == nil {
		err = trust.Want("", trust.VerbGossip.Who()...)(id)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		delete(n.chains, e.hash)
		return nil, refuse(trust.ReasonOf(err), "certificate of a record: %w", err)
	}
	fresh := &chain{raw: bytes.Clone(e.chain), hash: e.hash, leaf: leaf, id: id, learned: now, good: now.Add(recheck)}
	if c != nil {
		fresh.raw, fresh.learned, fresh.owner = c.raw, c.learned, c.owner
	} else {
		fresh.owner = rate.NewLimiter(ownerRate, ownerBurst)
	}
	if leaf.NotAfter.Before(fresh.good) {
		fresh.good = leaf.NotAfter
	}
	if c == nil {
		n.makeRoom(id)
	}
	n.chains[e.hash] = fresh
	return fresh, nil
}

// makeRoom removes what was learned first of those of one identity, if there are as
// many as allowed. n.mu is held.
func (n *notary) makeRoom(id trust.Identity) {
	var oldest *chain
	count := 0
	for _, c := range n.chains {
		if c.id != id {
			continue
		}
		count++
		if oldest == nil || c.learned.Before(oldest.learned) {
			oldest = c
		}
	}
	if count >= chainsPerName {
		delete(n.chains, oldest.hash)
	} else if len(n.chains) >= maxChains {
		for hash := range n.chains { // any: it is learned again
			delete(n.chains, hash)
			break
		}
	}
}

// forget removes what has to be verified again anyway.
func (n *notary) forget(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for hash, c := range n.chains {
		if now.After(c.good) && now.After(c.leaf.NotAfter) {
			delete(n.chains, hash)
		}
	}
}
