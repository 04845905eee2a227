package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/gossip/internal/mesh"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// sealed returns the record of c's node, signed, of a version.
func sealed(t testing.TB, c *trust.Credentials, counter uint64) record {
	t.Helper()
	id := c.Identity()
	r := record{
		key:     key{id.Name, "127.0.0.1:7946"},
		version: version{1, counter},
		facts:   Facts{Name: id.Name, Role: Role(id.Role), Colo: id.Colo, State: "serving", Version: "v1.2.3", Snapshots: make([]Announcement, 1)},
	}
	if err := r.encode(); err != nil {
		t.Fatal(err)
	}
	if err := newNotary(c).sign(&r, time.Now()); err != nil {
		t.Fatal(err)
	}
	return r
}

func nothing(record) bool { return false }

func TestEnvelope(t *testing.T) {
	r := sealed(t, trusttest.New(t).Open(t, trust.RoleWorker, "w1"), 1)
	full, short := r.wire(true), r.wire(false)
	t.Logf("a record of %d bytes: %d with its certificate, %d with its hash", len(r.raw), len(full), len(short))
	for _, b := range [][]byte{full, short} {
		e, err := decodeEnvelope(b)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(e.record, r.raw) || !bytes.Equal(e.signature, r.signature) || e.hash != r.chain.hash || !bytes.Equal(e.encode(), b) {
			t.Errorf("decoded as %+v", e)
		}
		if e.chain != nil && !slices.EqualFunc(decodeChain(e.chain), decodeChain(r.chain.raw), bytes.Equal) {
			t.Error("another chain")
		}
		for n := range b {
			if e, err := decodeEnvelope(b[:n]); trust.ReasonOf(err) != badRecord {
				t.Fatalf("the first %d of %d bytes: %+v, %v", n, len(b), e, err)
			}
		}
		if _, err := decodeEnvelope(append(bytes.Clone(b), 0)); trust.ReasonOf(err) != badRecord {
			t.Errorf("a byte more: %v", err)
		}
	}
	for name, test := range map[string]struct {
		b    []byte
		want trust.Reason
	}{
		"unsigned":               {r.raw, unsigned},
		"version 0":              {append([]byte{signed}, full[1:]...), badRecord},
		"too long":               {append(bytes.Clone(full), make([]byte, maxEnvelope)...), badRecord},
		"record too long":        {append([]byte{envelopeVersion, 0xff, 0xff}, make([]byte, 2000)...), badRecord},
		"a certificate too many": {append(append16(append16([]byte{envelopeVersion}, r.raw), r.signature), maxCerts+1), badRecord},
	} {
		if e, err := decodeEnvelope(test.b); trust.ReasonOf(err) != test.want {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
	if _, err := decodeEnvelope(append([]byte{envelopeVersion + 1}, full[1:]...)); !errors.Is(err, errNewerRecord) {
		t.Errorf("a newer version: %v", err)
	}
	if _, err := encodeChain([][]byte{make([]byte, maxChain)}); err == nil {
		t.Error("certificates that are too long were taken")
	}
	if maxEnvelope > packetSize-100 {
		t.Errorf("a record may be %d bytes long, and a packet %d", maxEnvelope, packetSize)
	}
}

func FuzzEnvelope(f *testing.F) {
	r := sealed(f, trusttest.New(f).Open(f, trust.RoleWorker, "w1"), 1)
	f.Add(r.wire(true))
	f.Add(r.wire(false))
	f.Add(r.raw)
	reader := newNotary(trusttest.New(f).Open(f, trust.RoleWorker, "w2"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEnvelope(b)
		if err == nil && !bytes.Equal(e.encode(), b) {
			t.Fatal("not canonical")
		}
		if r, err := reader.open(b, nothing, time.Now()); err == nil {
			t.Fatalf("a stranger's record was taken: %+v", r)
		}
	})
}

// Certificates are verified once, and are needed no more then; a version that is
// known is not looked at.
func TestNotary(t *testing.T) {
	ca := trusttest.New(t)
	c := ca.Open(t, trust.RoleWorker, "w1")
	n := newNotary(ca.Open(t, trust.RoleManager, "m1"))
	now := time.Now()
	first, second := sealed(t, c, 1), sealed(t, c, 2)
	if _, err := n.open(first.wire(false), nothing, now); !errors.Is(err, errUnknownChain) {
		t.Errorf("without certificates: %v", err)
	}
	r, err := n.open(first.wire(true), nothing, now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.wire(true), first.wire(true)) {
		t.Error("it would be passed on as something else")
	}
	if _, err := n.open(second.wire(false), nothing, now); err != nil {
		t.Errorf("with the hash of certificates that are known: %v", err)
	}
	spoilt := second
	spoilt.signature = []byte("none")
	if _, err := n.open(spoilt.wire(false), nothing, now); trust.ReasonOf(err) != trust.BadSignature {
		t.Errorf("without a signature: %v", err)
	}
	if _, err := n.open(spoilt.wire(false), func(record) bool { return true }, now); !errors.Is(err, errStale) {
		t.Errorf("a known version: %v", err)
	}
}

// Certificates count as long as they would for a connection.
func TestCertificatesAreLookedAtAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := trusttest.New(t)
		dir := t.TempDir()
		id := trusttest.Identity(trust.RoleManager, "m1")
		reader, err := trust.Open(trust.Options{Files: ca.Issue(t, dir, id, time.Now().Add(12*time.Hour))})
		if err != nil {
			t.Fatal(err)
		}
		n := newNotary(reader)
		short, err := trust.Open(trust.Options{Files: ca.Issue(t, t.TempDir(), trusttest.Identity(trust.RoleWorker, "w1"), time.Now().Add(time.Minute))})
		if err != nil {
			t.Fatal(err)
		}
		long := ca.Open(t, trust.RoleWorker, "w2")
		open := func(c *trust.Credentials, full bool) error {
			r := sealed(t, c, 1)
			_, err := n.open(r.wire(full), nothing, time.Now())
			return err
		}
		for _, c := range []*trust.Credentials{short, long} {
			if err := errors.Join(open(c, true), open(c, false)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute + time.Second)
		if err := open(short, false); trust.ReasonOf(err) != trust.Expired {
			t.Errorf("an expired certificate: %v", err)
		}
		if err := open(short, true); trust.ReasonOf(err) != trust.Expired {
			t.Errorf("an expired certificate: %v", err)
		}
		time.Sleep(2 * recheck)
		if err := open(long, false); err != nil {
			t.Errorf("a good certificate after a while: %v", err)
		}
		// Another authority takes over.
		trusttest.New(t).Issue(t, dir, id, time.Now().Add(12*time.Hour))
		if err := reader.Reload(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(recheck)
		if err := open(long, false); trust.ReasonOf(err) != trust.UnknownAuthority {
			t.Errorf("a certificate of an authority that is gone: %v", err)
		}
	})
}

// Who makes records without end has so many verified, and others do not use that up.
func TestRecordsAreVerifiedSoOften(t *testing.T) {
	ca := trusttest.New(t)
	c := ca.Open(t, trust.RoleWorker, "w1")
	n := newNotary(ca.Open(t, trust.RoleManager, "m1"))
	r, now := sealed(t, c, 1), time.Now()
	forged := r
	forged.signature = []byte("none")
	good := 0
	for range 3 * ownerBurst {
		if _, err := n.open(forged.wire(true), nothing, now); trust.ReasonOf(err) != trust.BadSignature && good < ownerBurst {
			t.Fatalf("after %d records a forged one is %v", good, err)
		}
		if _, err := n.open(r.wire(true), nothing, now); err == nil {
			good++
		} else if trust.ReasonOf(err) != mesh.Flood {
			t.Fatal(err)
		}
	}
	if good != ownerBurst {
		t.Errorf("%d records were verified at once, want %d", good, ownerBurst)
	}
	if _, err := n.open(r.wire(false), nothing, now.Add(time.Second)); err != nil {
		t.Errorf("a second later: %v", err)
	}
}

// One identity does not take the place of others' certificates.
func TestChainsAreBounded(t *testing.T) {
	ca := trusttest.New(t)
	n := newNotary(ca.Open(t, trust.RoleManager, "m1"))
	other := sealed(t, ca.Open(t, trust.RoleWorker, "w1"), 1)
	if _, err := n.open(other.wire(true), nothing, time.Now()); err != nil {
		t.Fatal(err)
	}
	var last record
	for i := range 10 {
		last = sealed(t, ca.Open(t, trust.RoleWorker, "w2"), uint64(i))
		if _, err := n.open(last.wire(true), nothing, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if len(n.chains) != 1+chainsPerName || n.chains[other.chain.hash] == nil || n.chains[last.chain.hash] == nil {
		t.Errorf("%d chains", len(n.chains))
	}
}

// Somebody who signs many records of itself does not take the place of others'.
func TestSignedOrphansAreBounded(t *testing.T) {
	c := trusttest.New(t).Open(t, trust.RoleWorker, "w1")
	v := newView(time.Hour, newNotary(c))
	now := time.Unix(0, 0)
	for i := range 3 * maxOrphans { // a whole fleet, before its members
		if got := v.hear(record{key: key{fmt.Sprint("n", i), "1.2.3.4:5"}}, now); got != applied {
			t.Fatalf("record %d: verdict %v", i, got)
		}
	}
	for i := range 20 {
		k := key{"many", fmt.Sprintf("1.2.3.%d:5", i)}
		if got := v.hear(record{key: k}, now.Add(time.Duration(i))); got != applied || !v.introduced(k) {
			t.Fatalf("address %d: verdict %v", i, got)
		}
	}
	if got := len(v.records); got != 3*maxOrphans+orphansPerName {
		t.Errorf("%d records", got)
	}
	if v.introduced(key{"n1", "1.2.3.4:6"}) || v.introduced(key{"ghost", "1.2.3.4:5"}) {
		t.Error("a member was introduced by nobody")
	}
}

// What a push-pull of 1,000 members carries.
func TestSignedStateOfAThousand(t *testing.T) {
	ca := trusttest.New(t)
	r := sealed(t, ca.Open(t, trust.RoleWorker, "w1"), 1)
	v := newView(time.Hour, newNotary(ca.Open(t, trust.RoleManager, "m1")))
	v.self = sealed(t, v.notary.creds, 1)
	long := time.Now().Add(-chainYoung)
	leaf, _, err := v.notary.creds.VerifyChain(decodeChain(r.chain.raw))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		other := r
		other.key = key{fmt.Sprintf("worker-%04d", i), "10.0.0.1:7946"}
		other.chain = &chain{raw: r.chain.raw, hash: r.chain.hash, learned: long, leaf: leaf}
		v.joined(other.key, long)
		v.hear(other, long)
	}
	full, err := v.state(true, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	short, err := v.state(false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("1,000 records: %d bytes for who joins, else %d", len(full), len(short))
	if len(full) > 2<<20 || len(short) > 800_000 {
		t.Error("that is too much")
	}
}

// What a record costs whoever receives it: signed by a certificate that is known,
// signed by one that is not, known already.
func BenchmarkHearSigned(b *testing.B) {
	ca := trusttest.New(b)
	r := sealed(b, ca.Open(b, trust.RoleWorker, "w1"), 1)
	creds := ca.Open(b, trust.RoleManager, "m1")
	n := newNotary(creds)
	if _, err := n.open(r.wire(true), nothing, time.Now()); err != nil {
		b.Fatal(err)
	}
	for name, bench := range map[string]func() error{
		"certificate=known": func() error { _, err := n.open(r.wire(false), nothing, time.Now()); return err },
		"certificate=new":   func() error { _, err := newNotary(creds).open(r.wire(true), nothing, time.Now()); return err },
		"version=known": func() error {
			if _, err := n.open(r.wire(false), func(record) bool { return true }, time.Now()); !errors.Is(err, errStale) {
				return errors.New("it was not known")
			}
			return nil
		},
		"own=sign": func() error { return n.sign(&r, time.Now()) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := bench(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
