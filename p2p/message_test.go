package p2p

import (
	"bufio"
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// Whatever arrives, messages that are accepted encode to the bytes they came from.
func FuzzMessages(f *testing.F) {
	e, err := txlog.Seal(txlog.Pos{}, 1, time.Unix(1, 0), []txlog.Op{{Kind: txlog.Init, Value: make([]byte, 16)}})
	if err != nil {
		f.Fatal(err)
	}
	next, err := txlog.Seal(e.Pos(), 1, time.Unix(2, 0), []txlog.Op{{Kind: txlog.Put, Key: []byte("k"), Value: make([]byte, 40_000)}})
	if err != nil {
		f.Fatal(err)
	}
	head := appendHead(nil, Head{Pos: next.Pos(), Time: next.Time})
	small := append([]byte{entryMessage}, e.Frame()...)
	large := append([]byte{entryMessage}, next.Frame()...)
	f.Add(append(append(append(bytes.Clone(head), small...), large...), head...))
	signed := appendSigned(nil, []byte("a note\n"))
	f.Add(append(append(bytes.Clone(head), signed...), small...))
	f.Add(appendDigest(bytes.Clone(head), Applied{Pos: next.Pos(), Digest: [32]byte{1}}))
	f.Add(append([]byte{digestMessage}, make([]byte, digestSize-1)...))
	f.Add(signed[:5])
	f.Add([]byte{signedMessage, 0, 0})
	f.Add([]byte{signedMessage, 0xff, 0xff, 1})
	f.Add(large[:1000])
	f.Add([]byte{entryMessage, 0xff, 0xff, 0xff, 0x03})
	f.Add([]byte("X"))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := messageReader{r: bufio.NewReader(bytes.NewReader(b))}
		var again []byte
		for {
			m, err := in.next()
			if err == io.EOF {
				if !bytes.Equal(again, b) {
					t.Fatalf("%d bytes were read as %d", len(b), len(again))
				}
				return
			}
			if err != nil {
				return
			}
			switch m.kind {
			case entryMessage:
				again = append(append(again, entryMessage), m.entry.Frame()...)
			case headMessage:
				again = appendHead(again, m.head)
			case signedMessage:
				if len(m.note) == 0 || len(m.note) > MaxSignedHead {
					t.Fatalf("a signed head of %d bytes", len(m.note))
				}
				again = appendSigned(again, m.note)
			case digestMessage:
				again = appendDigest(again, m.applied)
			}
		}
	})
}
