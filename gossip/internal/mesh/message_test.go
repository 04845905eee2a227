package mesh

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// message encodes a message as memberlist does.
func message(t testing.TB, kind byte, parts ...any) []byte {
	t.Helper()
	b := bytes.NewBuffer([]byte{kind})
	enc := codec.NewEncoder(b, &codec.MsgpackHandle{})
	for _, p := range parts {
		if raw, ok := p.([]byte); ok {
			b.Write(raw)
		} else if err := enc.Encode(p); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// acked is a message that says nothing of who sent it.
func acked(t testing.TB, seq uint32) []byte { return message(t, ackMsg, ack{SeqNo: seq}) }

func compound(parts ...[]byte) []byte {
	b := []byte{compoundMsg, byte(len(parts))}
	for _, p := range parts {
		b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
	}
	return append(b, bytes.Join(parts, nil)...)
}

func checksummed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{checksumMsg}, crc32.ChecksumIEEE(b)), b...)
}

func TestSplitPacket(t *testing.T) {
	p, u := message(t, pingMsg, ping{SourceNode: "w1"}), []byte{userMsg, 1, 2}
	for name, test := range map[string]struct {
		packet []byte
		want   [][]byte
	}{
		"one":                    {p, [][]byte{p}},
		"compound":               {compound(p, u, u), [][]byte{p, u, u}},
		"checksum":               {checksummed(p), [][]byte{p}},
		"compound with checksum": {checksummed(compound(u, p)), [][]byte{u, p}},
		"empty compound":         {compound(), [][]byte{}},
	} {
		got, err := splitPacket(test.packet)
		if err != nil || !slices.EqualFunc(got, test.want, bytes.Equal) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	wrong := checksummed(p)
	wrong[len(wrong)-1] ^= 1
	for name, b := range map[string][]byte{
		"empty":           {},
		"only checksum":   checksummed(nil),
		"wrong checksum":  wrong,
		"no number":       {compoundMsg},
		"lengths cut":     {compoundMsg, 2, 0, 1, 0},
		"part cut":        compound(p, u)[:len(compound(p, u))-1],
		"something after": append(compound(p), 0),
		"empty part":      compound(p, nil),
	} {
		if parts, err := splitPacket(b); trust.ReasonOf(err) != Malformed {
			t.Errorf("%s: %x, %v", name, parts, err)
		}
	}
}

func TestCheckMessage(t *testing.T) {
	type inOrder []any // a struct's fields without their names
	for name, test := range map[string]struct {
		message []byte
		want    trust.Reason
	}{
		"ping":                        {message(t, pingMsg, ping{SourceNode: "w1"}), ""},
		"indirect ping":               {message(t, indirectPingMsg, indirectPing{SourceNode: "w1"}), ""},
		"ping in order":               {message(t, pingMsg, inOrder{1, "m1", []byte{1}, 7, "w1"}), ""},
		"ack":                         {acked(t, 0), ""},
		"suspicion":                   {[]byte{suspectMsg}, ""},
		"ping of another":             {message(t, pingMsg, ping{SourceNode: "m1"}), FalseSource},
		"ping of nobody":              {message(t, pingMsg, ping{}), FalseSource},
		"indirect ping of another":    {message(t, indirectPingMsg, indirectPing{SourceNode: "m1"}), FalseSource},
		"ping in order, of another":   {message(t, pingMsg, inOrder{1, "w1", []byte{1}, 7, "m1"}), FalseSource},
		"ping, the source twice":      {message(t, pingMsg, []byte{0x82}, "SourceNode", "w1", "SourceNode", "m1"), FalseSource},
		"indirect ping in order":      {message(t, indirectPingMsg, inOrder{1, []byte{1}, 7, "x", false, []byte{1}, 7, "m1"}), FalseSource},
		"ping of something unknown":   {message(t, pingMsg, []byte{0x82}, "SourceNode", "w1", "Later", 7), ""},
		"ping that promises 4 GiB":    {append(message(t, pingMsg, []byte{0x82}, "SourceNode", "w1", "Later"), 0xc9, 0xff, 0xff, 0xff, 0xff, 1), Malformed},
		"ack that promises 4 GiB":     {append(message(t, ackMsg, []byte{0x81}, "Payload"), 0xc6, 0xff, 0xff, 0xff, 0xff, 1), Malformed},
		"ack of a million":            {append([]byte{ackMsg, 0xdf, 0, 0x0f, 0xff, 0xff}, make([]byte, 1<<10)...), Malformed},
		"ack of boxes in boxes":       {append(message(t, ackMsg, []byte{0x81}, "Payload"), bytes.Repeat([]byte{0x91}, 1000)...), Malformed},
		"ack and more":                {append(acked(t, 1), 0), Malformed},
		"ping that is none":           {[]byte{pingMsg, 0xc1}, Malformed},
		"ping cut":                    {message(t, pingMsg, ping{SourceNode: "w1"})[:20], Malformed},
		"indirect ping that is none":  {[]byte{indirectPingMsg}, Malformed},
		"compressed":                  {[]byte{9, 1}, Malformed},
		"encrypted":                   {[]byte{10, 1}, Malformed},
		"labelled":                    {[]byte{244, 1, 'x', 0}, Malformed},
		"compound within a compound":  {[]byte{compoundMsg, 0}, Malformed},
		"state, which is no packet":   {[]byte{pushPullMsg}, Malformed},
		"checksum within a compound":  {checksummed(acked(t, 0)), Malformed},
		"error, which is no packet":   {[]byte{errorMsg}, Malformed},
		"a type of later memberlists": {[]byte{14}, Malformed},
	} {
		err := checkMessage(test.message, "w1")
		if test.want == "" && err != nil || test.want != "" && trust.ReasonOf(err) != test.want {
			t.Errorf("%s: %v; want %q", name, err, test.want)
		}
	}
}

func stateOf(t testing.TB, nodes int, user []byte) []byte {
	parts := []any{stateHeader{Nodes: nodes, UserStateLen: len(user), Join: true}}
	for range nodes {
		parts = append(parts, stateNode{Name: "w1", Addr: []byte{127, 0, 0, 1}, Port: 7, Vsn: []byte{1, 5, 2, 0, 0, 0}})
	}
	return message(t, pushPullMsg, append(parts, user)...)
}

func TestDecodeState(t *testing.T) {
	for _, user := range [][]byte{{}, {1}, []byte(strings.Repeat("u", 5000))} {
		b := stateOf(t, 3, user)
		got, err := decodeState(b)
		if err != nil || !bytes.Equal(got.user, user) || len(got.nodes) != 3 || !got.join {
			t.Errorf("%+v, %v", got, err)
		}
		if again, err := got.encode(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("encoded as %x, %v; want %x", again, err, b)
		}
	}
	good := stateOf(t, 3, []byte("user"))
	for name, b := range map[string][]byte{
		"nothing":           {pushPullMsg},
		"cut":               good[:len(good)-1],
		"a member cut":      good[:len(good)-20],
		"something after":   append(slices.Clone(good), 0),
		"too many members":  message(t, pushPullMsg, stateHeader{Nodes: maxNodes + 1}),
		"a million":         message(t, pushPullMsg, stateHeader{Nodes: 1 << 20}, bytes.Repeat([]byte{0xc0}, 1<<20)),
		"a member of 4 GiB": message(t, pushPullMsg, stateHeader{Nodes: 1}, []byte("\x81\xa4Name\xdb\xff\xff\xff\xff")),
		"fewer than none":   message(t, pushPullMsg, stateHeader{Nodes: -1}),
		"negative state":    message(t, pushPullMsg, stateHeader{UserStateLen: -1}),
	} {
		if _, err := decodeState(b); trust.ReasonOf(err) != Malformed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Nobody is dead because somebody says so.
func TestTemper(t *testing.T) {
	left := func(name string) bool { return name == "left" }
	for name, test := range map[string]struct {
		kind byte
		m    accusation
		want byte // 0: refused
	}{
		"a suspicion":            {suspectMsg, accusation{7, "w1", "w2"}, suspectMsg},
		"a death":                {deadMsg, accusation{7, "w1", "w2"}, suspectMsg},
		"its own word":           {deadMsg, accusation{7, "w1", "w1"}, suspectMsg},
		"its own, signed word":   {deadMsg, accusation{7, "left", "left"}, deadMsg},
		"another's about it":     {deadMsg, accusation{7, "left", "w1"}, suspectMsg},
		"the last that it beats": {suspectMsg, accusation{maxAccused, "w1", "w2"}, suspectMsg},
		"one that it can not":    {suspectMsg, accusation{maxAccused + 1, "w1", "w2"}, 0},
		"a death, the same":      {deadMsg, accusation{1<<32 - 1, "left", "left"}, 0},
	} {
		b := message(t, test.kind, test.m)
		err := temper(b, left)
		if test.want == 0 && trust.ReasonOf(err) != Malformed || test.want != 0 && (err != nil || b[0] != test.want) {
			t.Errorf("%s: type %d, %v; want %d", name, b[0], err, test.want)
		}
	}
	if err := temper([]byte{deadMsg, 0xc1}, left); trust.ReasonOf(err) != Malformed {
		t.Errorf("junk: %v", err)
	}
	s := state{nodes: []stateNode{
		{Name: "w1", State: memberlist.StateAlive, Incarnation: 1<<32 - 1},
		{Name: "w2", State: memberlist.StateLeft},
		{Name: "left", State: memberlist.StateLeft},
		{Name: "w3", State: memberlist.StateDead},
		{Name: "w4", State: memberlist.StateDead, Incarnation: maxAccused + 1},
	}}
	if !s.temper(left) || s.temper(left) || len(s.nodes) != 4 {
		t.Errorf("%+v", s.nodes)
	}
	for i, want := range []memberlist.NodeStateType{memberlist.StateAlive, memberlist.StateSuspect, memberlist.StateLeft, memberlist.StateDead} {
		if s.nodes[i].State != want {
			t.Errorf("%s is %v", s.nodes[i].Name, s.nodes[i].State)
		}
	}
}

func TestFrames(t *testing.T) {
	long := []byte(strings.Repeat("long", MaxPacket/4))
	b := appendFrame(appendFrame(nil, []byte("short")), long)
	r := bytes.NewReader(b)
	for _, want := range [][]byte{[]byte("short"), long} {
		if got, err := readFrame(r, MaxPacket, nil); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	if _, err := readFrame(r, MaxPacket, nil); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	for name, b := range map[string][]byte{
		"empty":    appendFrame(nil, nil),
		"huge":     {0xff, 0xff, 0xff, 0xff},
		"one over": appendFrame(nil, append(slices.Clone(long), 0)),
	} {
		if _, err := readFrame(bytes.NewReader(b), MaxPacket, nil); trust.ReasonOf(err) != Malformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, cut := range []int{1, 4, 5, 8} {
		if _, err := readFrame(bytes.NewReader(b[:cut]), MaxPacket, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: %v", cut, err)
		}
	}
	// Memory follows what came, not what was promised.
	asked := 0
	_, err := readFrame(bytes.NewReader([]byte{0, 0, 0x80, 0, 1, 2, 3}), MaxState, func(n int) error { asked += n; return nil })
	if err == nil || asked > firstChunk {
		t.Errorf("%d bytes were taken for 3, %v", asked, err)
	}
}

func FuzzPacket(f *testing.F) {
	p, u := message(f, pingMsg, ping{SourceNode: "w1"}), []byte{userMsg, 1, 2}
	for _, b := range [][]byte{p, u, compound(p, u), checksummed(compound(u, p)), message(f, indirectPingMsg, indirectPing{SourceNode: "m1"})} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		parts, err := splitPacket(b)
		if err != nil && trust.ReasonOf(err) != Malformed {
			t.Fatalf("%v has no reason", err)
		}
		for _, p := range parts {
			if err := checkMessage(p, "w1"); err != nil {
				if r := trust.ReasonOf(err); r != Malformed && r != FalseSource {
					t.Fatalf("%v has no reason", err)
				}
			}
		}
	})
}

// Whatever is let through costs the decoder no more than it is worth.
func FuzzUnpack(f *testing.F) {
	f.Add(message(f, pingMsg, ping{SourceNode: "w1"})[1:])
	f.Add([]byte("\x81\xa1x\xc9\x7f\xff\xff\xff\x01"))
	f.Add([]byte("\xdc\x00\x02\xc4\x01x\xd9\x02xy"))
	f.Fuzz(func(t *testing.T, b []byte) {
		value, rest, err := unpack(b)
		if err != nil {
			return
		}
		if len(value) == 0 || !bytes.Equal(slices.Concat(value, rest), b) {
			t.Fatalf("%x became %x and %x", b, value, rest)
		}
		r := bytes.NewReader(b)
		var any any
		if codec.NewDecoder(r, &codec.MsgpackHandle{}).Decode(&any) == nil && r.Len() != len(rest) {
			t.Fatalf("memberlist's decoder leaves %d bytes of %x, and this one %d", r.Len(), b, len(rest))
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add(stateOf(f, 0, nil)[1:])
	f.Add(stateOf(f, 3, []byte("user"))[1:])
	f.Add(message(f, pushPullMsg, stateHeader{Nodes: 1 << 14})[1:])
	f.Fuzz(func(t *testing.T, b []byte) {
		b = append([]byte{pushPullMsg}, b...)
		s, err := decodeState(b)
		if err != nil {
			if trust.ReasonOf(err) != Malformed {
				t.Fatalf("%v has no reason", err)
			}
			return
		}
		if !bytes.HasSuffix(b, s.user) {
			t.Fatal("the user's part is not the end")
		}
		s.temper(func(name string) bool { return name == "" })
		b, err = s.encode()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decodeState(b); err != nil || !reflect.DeepEqual(again.nodes, s.nodes) && len(s.nodes) > 0 {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(nil, []byte("payload")))
	f.Add([]byte{0xff, 0xff, 0xff, 0x7f, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		held := 0
		got, err := readFrame(bytes.NewReader(b), MaxState, func(n int) error { held += n; return nil })
		if held > 2*len(b)+firstChunk {
			t.Fatalf("%d bytes of memory for %d", held, len(b))
		}
		if err == nil && !bytes.HasPrefix(b, appendFrame(nil, got)) {
			t.Fatal("another payload")
		}
	})
}
