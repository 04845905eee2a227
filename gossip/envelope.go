package gossip

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// An envelope is a record as it travels with TLS: signed by its owner, with the
// certificates that say who that is, or with their hash where they are known.
//
//	version u8 = 0x81: a high bit no record begins with, and a version
//	record u16, and as many bytes
//	signature u16, and as many bytes
//	number of certificates u8, each: u16, and as many bytes of DER, the leaf first
//	if that number is 0: SHA-256 of the certificates as they would be here
//
// Integers are little-endian, and nothing follows.
type envelope struct {
	record    []byte
	signature []byte
	chain     []byte // the certificates with their number; nil: only
	hash      chainHash
}

// chainHash identifies certificates by the SHA-256 of their encoding in an envelope.
type chainHash [sha256.Size]byte

// envelopeVersion is the first byte of an envelope, and signed the bit that tells
// one from a record.
const (
	signed          = 0x80
	envelopeVersion = signed | 1
)

// Limits in bytes, and of the number of certificates.
const (
	maxSignature = 1024
	maxChain     = 8 << 10
	maxCerts     = 8
	maxEnvelope  = 1 + 2 + MaxFacts + 2 + maxSignature + maxChain
)

// Reasons for which records are dropped, beside those of certificates.
const (
	badRecord trust.Reason = "bad_record"
	unsigned  trust.Reason = "unsigned"
	wrongColo trust.Reason = "wrong_colo"
)

func refuse(r trust.Reason, format string, args ...any) error {
	return &trust.RefusedError{Reason: r, Err: fmt.Errorf(format, args...)}
}

// encodeChain returns certificates as they are in an envelope.
func encodeChain(certs [][]byte) ([]byte, error) {
	if len(certs) == 0 || len(certs) > maxCerts {
		return nil, fmt.Errorf("%d certificates; 1 to %d are allowed", len(certs), maxCerts)
	}
	b := []byte{byte(len(certs))}
	for _, c := range certs {
		b = append16(b, c)
	}
	if len(b) > maxChain {
		return nil, fmt.Errorf("certificates of %d bytes; at most %d are allowed", len(b), maxChain)
	}
	return b, nil
}

// decodeChain is the inverse of encodeChain for what decodeEnvelope let through.
func decodeChain(b []byte) (certs [][]byte) {
	for b = b[1:]; len(b) > 0; {
		n := int(binary.LittleEndian.Uint16(b))
		certs, b = append(certs, b[2:2+n]), b[2+n:]
	}
	return certs
}

// append16 appends p after its length.
func append16(b, p []byte) []byte {
	return append(binary.LittleEndian.AppendUint16(b, uint16(len(p))), p...)
}

// encode returns the envelope's bytes.
func (e *envelope) encode() []byte {
	b := make([]byte, 0, 1+2+len(e.record)+2+len(e.signature)+max(len(e.chain), 1+len(e.hash)))
	b = append(b, envelopeVersion)
	b = append16(b, e.record)
	b = append16(b, e.signature)
	if e.chain != nil {
		return append(b, e.chain...)
	}
	b = append(b, 0)
	return append(b, e.hash[:]...)
}

// decodeEnvelope is the inverse of encode. What it returns are parts of b.
func decodeEnvelope(b []byte) (e envelope, err error) {
	fail := func(format string, args ...any) (envelope, error) {
		return envelope{}, refuse(badRecord, format, args...)
	}
	switch {
	case len(b) == 0:
		return fail("empty record")
	case len(b) > maxEnvelope:
		return fail("signed record is %d bytes long; at most %d are allowed", len(b), maxEnvelope)
	case b[0]&signed == 0:
		return envelope{}, refuse(unsigned, "a record without a signature")
	case b[0] > envelopeVersion:
		return envelope{}, fmt.Errorf("%w: %#x", errNewerRecord, b[0])
	case b[0] != envelopeVersion:
		return fail("signed record of version %#x is unknown", b[0])
	}
	cut := errors.New("signed record is cut short")
	take := func(what string, limit int) []byte {
		if err != nil {
			return nil
		}
		if len(b) < 2 {
			err = cut
			return nil
		}
		n := int(binary.LittleEndian.Uint16(b))
		if n > limit || n > len(b)-2 {
			err = fmt.Errorf("%s of %d bytes is too long", what, n)
			return nil
		}
		p := b[2 : 2+n : 2+n]
		b = b[2+n:]
		return p
	}
	b = b[1:]
	e.record = take("record", MaxFacts)
	e.signature = take("signature", maxSignature)
	if err == nil && len(b) == 0 {
		err = cut
	}
	if err != nil {
		return fail("%w", err)
	}
	rest := b
	n := int(b[0])
	b = b[1:]
	switch {
	case n > maxCerts:
		return fail("%d certificates; at most %d are allowed", n, maxCerts)
	case n == 0 && len(b) != len(e.hash):
		return fail("a hash of certificates is %d bytes long; want %d", len(b), len(e.hash))
	case n == 0:
		e.hash = chainHash(b)
		return e, nil
	case len(rest) > maxChain:
		return fail("certificates of %d bytes; at most %d are allowed", len(rest), maxChain)
	}
	for range n {
		take("certificate", maxChain)
	}
	if err != nil {
		return fail("%w", err)
	}
	if len(b) > 0 {
		return fail("%d bytes follow a signed record", len(b))
	}
	e.chain = rest
	e.hash = sha256.Sum256(rest)
	return e, nil
}
