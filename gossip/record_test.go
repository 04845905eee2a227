package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/qs-peer/qs-peer/txlog"
)

// fullRecord has every field at its limit.
func fullRecord(name string) record {
	long := func(n int) string { return strings.Repeat("x", n) }
	pos := func(n uint64) txlog.Pos { return txlog.Pos{Seq: n, Hash: txlog.Hash{byte(n)}} }
	r := record{
		key:     key{name: name + long(maxName-len(name)), addr: long(maxGossipAddr)},
		version: version{incarnation: maxIncarnation, counter: math.MaxUint64},
		leaving: true,
		facts: Facts{
			Role: Role(long(maxRole)), Colo: long(maxColo), Version: long(maxVersion), Writer: true,
			SwarmAddr: long(maxAddr), PeerAddr: long(maxAddr), HTTPAddr: long(maxAddr),
			Dataset: txlog.DatasetID{1, 2, 3}, State: long(maxState),
			Applied: pos(8), AppliedTime: time.Unix(1, 2), AppliedDigest: [32]byte{1, 31: 2}, Head: pos(9), HeadTime: time.Unix(3, 4),
			LogFirst: math.MaxUint64, Progress: 0.5, Fetching: [20]byte{1, 19: 2}, FetchDone: math.MaxInt64 - 1, FetchTotal: math.MaxInt64, FetchRate: 1 << 40,
			FromManagers: Payload{math.MaxInt64, math.MaxUint32}, FromOwnColo: Payload{1, 2}, FromOtherColos: Payload{3, 4},
			Snapshots: []Announcement{{Pos: pos(7), InfoHash: [20]byte{1}, Size: 1}, {Pos: pos(6)}, {Pos: pos(5), Size: math.MaxInt64}},
		},
	}
	r.facts.Name = r.name
	return r
}

func TestRecordRoundTrip(t *testing.T) {
	small := record{key: key{"n", "1.2.3.4:5"}, facts: Facts{Name: "n", Role: Worker}}
	for name, r := range map[string]record{"full": fullRecord("n"), "small": small} {
		t.Run(name, func(t *testing.T) {
			if err := r.encode(); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes", len(r.raw))
			got, err := decodeRecord(r.raw)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, r) {
				t.Errorf("got  %+v\nwant %+v", got, r)
			}
		})
	}
}

// The largest record must get into a packet of memberlist's, or it would wait
// in the queue for ever.
func TestLargestRecordFitsAPacket(t *testing.T) {
	r := fullRecord("n")
	if err := r.encode(); err != nil {
		t.Fatal(err)
	}
	const headerOverhead, messageOverhead = 2, 3 // of a compound packet and of a user message in it
	limit := memberlist.DefaultLANConfig().UDPBufferSize - headerOverhead
	if MaxFacts+messageOverhead > limit {
		t.Errorf("MaxFacts is %d, a packet holds %d", MaxFacts, limit-messageOverhead)
	}
	q := memberlist.TransmitLimitedQueue{NumNodes: func() int { return 1 }, RetransmitMult: 1}
	q.QueueBroadcast(queued{name: "n", raw: r.raw})
	if got := q.GetBroadcasts(messageOverhead, limit); len(got) != 1 {
		t.Errorf("a record of %d bytes was not sent", len(r.raw))
	}
}

func TestRecordRefused(t *testing.T) {
	good := record{key: key{"n", "1.2.3.4:5"}, facts: Facts{Name: "n", Role: Worker, Progress: 1}}
	if err := good.encode(); err != nil {
		t.Fatal(err)
	}
	raw := good.raw
	for n := range raw {
		if _, err := decodeRecord(raw[:n]); err == nil {
			t.Errorf("the first %d of %d bytes were taken", n, len(raw))
		}
	}
	edit := func(at int, b ...byte) []byte {
		c := bytes.Clone(raw)
		copy(c[at:], b)
		return c
	}
	const flagsAt, nameAt = 17, 18
	const payload, fetch = 3 * (8 + 4), 20 + 8 + 8 + 8
	progressAt := len(raw) - 1 - payload - fetch - 8
	for name, b := range map[string][]byte{
		"empty":                 {},
		"version 0":             edit(0, 0),
		"incarnation too large": edit(8, 0x80),
		"unknown flag":          edit(flagsAt, 4),
		"empty name":            append(append(bytes.Clone(raw[:nameAt]), 0), raw[nameAt+2:]...),
		"name too long":         edit(nameAt, 255),
		"name not UTF-8":        edit(nameAt+1, 0xff),
		"progress NaN":          edit(progressAt, 0, 0, 0, 0, 0, 0, 0xf8, 0x7f),
		"progress 2":            edit(progressAt, 0, 0, 0, 0, 0, 0, 0, 0x40),
		"negative bytes":        edit(len(raw)-1-4-1, 0x80),
		"negative done":         edit(len(raw)-1-payload-16-1, 0x80),
		"negative total":        edit(len(raw)-1-payload-8-1, 0x80),
		"negative rate":         edit(len(raw)-1-payload-1, 0x80),
		"4 announcements":       edit(len(raw)-1, 4),
		"missing announcement":  edit(len(raw)-1, 1),
		"trailing byte":         append(bytes.Clone(raw), 0),
		"too long":              append(bytes.Clone(raw), make([]byte, MaxFacts)...),
	} {
		if r, err := decodeRecord(b); err == nil {
			t.Errorf("%s: taken as %+v", name, r)
		} else if errors.Is(err, errNewerRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := decodeRecord(edit(0, 3)); !errors.Is(err, errNewerRecord) {
		t.Errorf("version 3: %v", err)
	}
}

// withoutDigestOf returns a record as software of version 1 wrote it.
func withoutDigestOf(r record) []byte {
	state := 1 + len(r.facts.State)
	at := 1 + 8 + 8 + 1 + len(r.facts.Dataset) + state + (8 + 32 + 8)
	for _, text := range r.texts() {
		at += 1 + len(*text.s)
	}
	old := slices.Delete(bytes.Clone(r.raw), at, at+len(r.facts.AppliedDigest))
	old[0] = withoutDigest
	return old
}

func TestRecordOfVersion1(t *testing.T) {
	r := fullRecord("n")
	if err := r.encode(); err != nil {
		t.Fatal(err)
	}
	old := withoutDigestOf(r)
	got, err := decodeRecord(old)
	if err != nil {
		t.Fatal(err)
	}
	r.facts.AppliedDigest, r.raw = [32]byte{}, old
	if !reflect.DeepEqual(got, r) {
		t.Errorf("got  %+v\nwant %+v", got, r)
	}
	for n := range old {
		if _, err := decodeRecord(old[:n]); err == nil {
			t.Errorf("the first %d of %d bytes were taken", n, len(old))
		}
	}
}

func FuzzRecord(f *testing.F) {
	for _, r := range []record{fullRecord("n"), {key: key{"n", "1.2.3.4:5"}}} {
		if err := r.encode(); err != nil {
			f.Fatal(err)
		}
		f.Add(r.raw)
		f.Add(withoutDigestOf(r))
	}
	f.Add([]byte{3, 1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		again := record{key: r.key, version: r.version, leaving: r.leaving, facts: r.facts}
		if err := again.encode(); err != nil {
			t.Fatalf("decoded, but: %v", err)
		}
		if b[0] == withoutDigest {
			again.raw = withoutDigestOf(again)
		}
		if !bytes.Equal(again.raw, b) {
			t.Fatalf("not canonical:\n%x\n%x", b, again.raw)
		}
	})
}

func FuzzState(f *testing.F) {
	v := newView(time.Hour, nil)
	for i := range 3 {
		learn(f, v, i)
	}
	f.Add(stateOf(f, v))
	f.Add([]byte{1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		v := newView(time.Hour, nil)
		splitState(b, func(raw []byte) error {
			if r, err := decodeRecord(raw); err == nil {
				v.hear(r, time.Unix(0, 0))
			}
			return nil
		})
	})
}

func stateOf(t testing.TB, v *view) []byte {
	t.Helper()
	b, err := v.state(true, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// learn makes node i a member of v with a record of the usual size.
func learn(t testing.TB, v *view, i int) record {
	t.Helper()
	r := record{
		key:     key{fmt.Sprintf("worker-%04d.colo.example", i), fmt.Sprintf("10.0.%d.%d:7946", i/250, i%250)},
		version: version{incarnation: 1},
		facts: Facts{Role: Worker, Colo: "colo", Version: "v1.2.3", State: "serving",
			SwarmAddr: ":6881", PeerAddr: ":7947", HTTPAddr: ":7948",
			Snapshots: make([]Announcement, MaxSnapshots)},
	}
	r.facts.Name = r.name
	if err := r.encode(); err != nil {
		t.Fatal(err)
	}
	v.joined(r.key, time.Unix(0, 0))
	if got := v.hear(r, time.Unix(0, 0)); got != applied {
		t.Fatalf("verdict %v", got)
	}
	return r
}

// A push-pull of 1,000 records stays far below memberlist's limit of 20 MiB.
func TestStateOfAThousand(t *testing.T) {
	const limit = 1000 * (MaxFacts + 2)
	v := newView(time.Hour, nil)
	for i := range 1000 {
		learn(t, v, i)
	}
	b := stateOf(t, v)
	t.Logf("1,000 records: %d bytes", len(b))
	if len(b) > limit {
		t.Errorf("%d bytes, want at most %d", len(b), limit)
	}
	n := 0
	if err := splitState(b, func(raw []byte) error { n++; return nil }); err != nil || n != 1000 {
		t.Errorf("%d records, %v", n, err)
	}
	for _, bad := range [][]byte{nil, {2}, {1, 0}, {1, 9, 0, 1}} {
		if err := splitState(bad, func([]byte) error { return nil }); err == nil {
			t.Errorf("state %x was taken", bad)
		}
	}
}

func TestOrphansAreBounded(t *testing.T) {
	v := newView(time.Hour, nil)
	now := time.Unix(0, 0)
	known := learn(t, v, 0)
	taken := 0
	for i := range 5 * maxOrphans {
		if v.hear(record{key: key{fmt.Sprint("orphan ", i), "1.2.3.4:5"}}, now) == applied {
			taken++
		}
	}
	if taken != maxOrphans {
		t.Errorf("%d orphans were kept, want %d", taken, maxOrphans)
	}
	if got := len(v.list()); got != 1 {
		t.Errorf("%d members, want 1", got)
	}
	v.forget(now.Add(orphanMaxAge))
	if len(v.records) != 1 || v.records[known.key] == nil {
		t.Errorf("%d records after a while, want the member's only", len(v.records))
	}
}

// A name that moved to another address keeps nothing of the old one, and a
// record that came before its member counts once the member is there.
func TestNameMoves(t *testing.T) {
	v := newView(time.Hour, nil)
	now := time.Unix(0, 0)
	old := learn(t, v, 0)
	moved := record{key: key{old.name, "10.9.9.9:1"}, version: version{incarnation: 2}, facts: Facts{Name: old.name, State: "moved"}}
	if got := v.hear(moved, now); got != applied {
		t.Fatal(got)
	}
	if m := v.list()[0]; m.State != "serving" || m.Addr != old.addr {
		t.Errorf("before the move: %+v", m)
	}
	v.joined(moved.key, now)
	if m := v.list()[0]; m.State != "moved" || m.Addr != moved.addr {
		t.Errorf("after the move: %+v", m)
	}
	v.died(old.key, now) // late news of the old process
	if m := v.list()[0]; m.Liveness != Alive {
		t.Errorf("the old process' death counts against the new one: %+v", m)
	}
}

// TestListIsMadeOncePerChange: all who ask get the same list until something changes,
// and then one that says so.
func TestListIsMadeOncePerChange(t *testing.T) {
	v := newView(time.Hour, nil)
	now := time.Unix(0, 0)
	v.self.key.name, v.self.facts.Name = "self", "self"
	v.settle("10.0.0.1:1")
	v.joined(v.self.key, now)
	other := record{key: key{"other", "10.0.0.2:1"}, version: version{incarnation: 2}, facts: Facts{Name: "other"}}
	news := other
	news.counter, news.facts.State = 1, "serving"
	ahead := v.self
	ahead.version = version{incarnation: 7}
	before := v.list()
	for _, c := range []struct {
		name   string
		change func()
		want   func(all []Member) bool
	}{
		{"it joined", func() { v.joined(other.key, now) }, func(all []Member) bool { return len(all) == 2 && all[1].Incarnation == 0 }},
		{"it was heard", func() { v.hear(other, now) }, func(all []Member) bool { return all[1].Incarnation == 2 }},
		{"its facts changed", func() { v.hear(news, now) }, func(all []Member) bool { return all[1].State == "serving" }},
		{"it died", func() { v.died(other.key, now) }, func(all []Member) bool { return all[1].Liveness == Failed }},
		{"it is forgotten", func() { v.forget(now.Add(time.Hour)) }, func(all []Member) bool { return len(all) == 1 }},
		{"the own facts changed", func() { v.update(func(f *Facts) { f.State = "serving" }, false) }, func(all []Member) bool { return all[0].State == "serving" }},
		{"an earlier life was heard", func() { v.hear(ahead, now) }, func(all []Member) bool { return all[0].Incarnation == 8 }},
	} {
		if again := v.list(); &again[0] != &before[0] {
			t.Errorf("before %s the list was made anew", c.name)
		}
		c.change()
		after := v.list()
		if !c.want(after) {
			t.Errorf("after %s: %+v", c.name, after)
		}
		before = after
	}
}
