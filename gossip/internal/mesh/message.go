package mesh

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"slices"
	"strconv"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// memberlist's messages begin with a byte that says their type (its net.go). Those
// that are not here (labels, encryption, compression) this fleet does not send.
const (
	pingMsg         = 0
	indirectPingMsg = 1
	ackMsg          = 2
	suspectMsg      = 3
	aliveMsg        = 4
	deadMsg         = 5
	pushPullMsg     = 6
	compoundMsg     = 7
	userMsg         = 8
	nackMsg         = 11
	checksumMsg     = 12
	errorMsg        = 13
)

// The messages that are looked into, field by field as memberlist declares them:
// MessagePack may give them by name or in this order, and both readers must find
// the same.
type (
	ping struct {
		SeqNo      uint32
		Node       string
		SourceAddr []byte
		SourcePort uint16
		SourceNode string
	}
	indirectPing struct {
		SeqNo      uint32
		Target     []byte
		Port       uint16
		Node       string
		Nack       bool
		SourceAddr []byte
		SourcePort uint16
		SourceNode string
	}
	alive struct {
		Incarnation uint32
		Node        string
		Addr        []byte
		Port        uint16
		Meta        []byte
		Vsn         []uint8
	}
	ack struct { // and nack
		SeqNo   uint32
		Payload []byte
	}
	accusation struct { // a suspicion, or a death
		Incarnation uint32
		Node        string
		From        string
	}
	remoteError struct{ Error string }
	stateHeader struct {
		Nodes        int
		UserStateLen int
		Join         bool
	}
	stateNode struct {
		Name        string
		Addr        []byte
		Port        uint16
		Meta        []byte
		Incarnation uint32
		State       memberlist.NodeStateType
		Vsn         []uint8
	}
)

// maxNodes is how many members a state may list; memberlist allocates them at once.
const maxNodes = 16 << 10

func malformed(format string, args ...any) error {
	return &trust.RefusedError{Reason: Malformed, Err: fmt.Errorf(format, args...)}
}

// decode reads a value as memberlist does.
func decode(value []byte, out any) error {
	if err := codec.NewDecoder(bytes.NewReader(value), &codec.MsgpackHandle{}).Decode(out); err != nil {
		return malformed("a message that is none of memberlist's: %w", err)
	}
	return nil
}

// decodeAll decodes a message of a packet, which is one value after its type.
func decodeAll(b []byte, out any) error {
	value, rest, err := unpack(b[1:])
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return malformed("%d bytes follow a message", len(rest))
	}
	return decode(value, out)
}

// decodeNext decodes a value that others may follow.
func decodeNext(b []byte, out any) (rest []byte, err error) {
	value, rest, err := unpack(b)
	if err != nil {
		return nil, err
	}
	return rest, decode(value, out)
}

// splitPacket returns the messages in a packet: one, or those of a compound, without
// the checksum that may be around it.
func splitPacket(b []byte) ([][]byte, error) {
	if len(b) >= 5 && b[0] == checksumMsg {
		if sum := binary.BigEndian.Uint32(b[1:]); sum != crc32.ChecksumIEEE(b[5:]) {
			return nil, malformed("a packet's checksum is wrong")
		}
		b = b[5:]
	}
	if len(b) == 0 {
		return nil, malformed("an empty packet")
	}
	if b[0] != compoundMsg {
		return [][]byte{b}, nil
	}
	if len(b) < 2 || len(b) < 2+2*int(b[1]) {
		return nil, malformed("a compound packet is cut short")
	}
	n := int(b[1])
	lengths, rest := b[2:2+2*n], b[2+2*n:]
	parts := make([][]byte, n)
	for i := range parts {
		size := int(binary.BigEndian.Uint16(lengths[2*i:]))
		if size == 0 || size > len(rest) {
			return nil, malformed("a compound packet has a message of %d bytes where %d are left", size, len(rest))
		}
		parts[i], rest = rest[:size], rest[size:]
	}
	if len(rest) > 0 {
		return nil, malformed("%d bytes follow a compound packet", len(rest))
	}
	return parts, nil
}

// checkMessage says what is wrong with a message of a packet from a node. What
// memberlist relays for others says nothing of its way and is not looked into.
func checkMessage(b []byte, from string) error {
	var source string
	switch b[0] {
	case pingMsg:
		var m ping
		if err := decodeAll(b, &m); err != nil {
			return err
		}
		source = m.SourceNode
	case indirectPingMsg:
		var m indirectPing
		if err := decodeAll(b, &m); err != nil {
			return err
		}
		source = m.SourceNode
	case ackMsg, nackMsg:
		return decodeAll(b, &ack{})
	case suspectMsg, aliveMsg, deadMsg, userMsg:
		return nil // others look into them
	default:
		return malformed("a message of type %d", b[0])
	}
	if source != from {
		return &trust.RefusedError{Reason: FalseSource, Err: fmt.Errorf("a ping claims to come from %q, and %q sent it", clip(source), from)}
	}
	return nil
}

// aliveOf returns of whom an alive message is.
func aliveOf(b []byte) (memberlist.Address, error) {
	var m alive
	if err := decodeAll(b, &m); err != nil {
		return memberlist.Address{}, err
	}
	return memberlist.Address{Name: m.Node, Addr: net.JoinHostPort(net.IP(m.Addr).String(), strconv.Itoa(int(m.Port)))}, nil
}

// maxAccused is the highest incarnation that anybody is accused with. A node refutes
// with a higher one, and there must be some left.
const maxAccused = 1 << 31

// temper makes of a message that somebody is dead one that it is suspected: then it
// can refute that, and nobody is dead because one member says so. Only who said
// itself that it leaves may be taken for gone at once. It may change b.
func temper(b []byte, left func(name string) bool) error {
	var m accusation
	if err := decodeAll(b, &m); err != nil {
		return err
	}
	if m.Incarnation > maxAccused {
		return malformed("%q is accused with incarnation %d", clip(m.Node), m.Incarnation)
	}
	if b[0] == deadMsg && (m.From != m.Node || !left(m.Node)) {
		b[0] = suspectMsg
	}
	return nil
}

// state is what two members tell each other of all.
type state struct {
	join  bool
	nodes []stateNode
	user  []byte
}

// decodeState reads a state exchange, whose user's part stays a part of b.
func decodeState(b []byte) (state, error) {
	var h stateHeader
	rest, err := decodeNext(b[1:], &h)
	if err != nil {
		return state{}, err
	}
	if h.Nodes < 0 || h.Nodes > maxNodes {
		return state{}, malformed("a state lists %d members; at most %d are allowed", h.Nodes, maxNodes)
	}
	s := state{join: h.Join}
	for range h.Nodes {
		var n stateNode
		if rest, err = decodeNext(rest, &n); err != nil {
			return state{}, err
		}
		s.nodes = append(s.nodes, n)
	}
	if len(rest) != h.UserStateLen {
		return state{}, malformed("%d bytes follow the members of a state that promised %d", len(rest), h.UserStateLen)
	}
	s.user = rest
	return s, nil
}

// temper is temper for a state: memberlist itself takes the dead for suspected. It
// reports whether anything was changed.
func (s *state) temper(left func(name string) bool) (changed bool) {
	all := len(s.nodes)
	s.nodes = slices.DeleteFunc(s.nodes, func(n stateNode) bool {
		return n.State != memberlist.StateAlive && n.Incarnation > maxAccused
	})
	for i := range s.nodes {
		if n := &s.nodes[i]; n.State == memberlist.StateLeft && !left(n.Name) {
			n.State, changed = memberlist.StateSuspect, true
		}
	}
	return changed || len(s.nodes) != all
}

// encode is the inverse of decodeState.
func (s *state) encode() ([]byte, error) {
	b := bytes.NewBuffer([]byte{pushPullMsg})
	enc := codec.NewEncoder(b, &codec.MsgpackHandle{})
	if err := enc.Encode(stateHeader{Nodes: len(s.nodes), UserStateLen: len(s.user), Join: s.join}); err != nil {
		return nil, err
	}
	for i := range s.nodes {
		if err := enc.Encode(&s.nodes[i]); err != nil {
			return nil, err
		}
	}
	b.Write(s.user)
	return b.Bytes(), nil
}

// clip shortens what somebody else wrote for an error message.
func clip(s string) string {
	const most = 128
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
