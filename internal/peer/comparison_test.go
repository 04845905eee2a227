package peer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// forge changes the value of a key in a running node's environment, its checksum
// included. The digest that the node keeps does not tell, until the key is written again.
func (n *testNode) forge(key, value, other string) {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.o.Data, storeDir, "gen-*", "data.mdb"))
	if err != nil || len(files) != 1 {
		n.t.Fatal(files, err)
	}
	file, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	defer file.Close()
	text, err := io.ReadAll(file)
	if err != nil {
		n.t.Fatal(err)
	}
	sealed := func(value string) []byte {
		b := binary.LittleEndian.AppendUint32([]byte{2}, crc32.Checksum([]byte(key+value), crc32.MakeTable(crc32.Castagnoli)))
		return append(b, value...)
	}
	if len(value) != len(other) || !bytes.Contains(text, sealed(value)) {
		n.t.Fatalf("%s does not hold %q: %q", n.o.Name, key, value)
	}
	for at := 0; ; {
		i := bytes.Index(text[at:], sealed(value))
		if i < 0 {
			return
		}
		if _, err := file.WriteAt(sealed(other), int64(at+i)); err != nil {
			n.t.Fatal(err)
		}
		at += i + 1
	}
}

func (l *logLines) contain(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

// Copies at one entry whose digests differ: the one that the writer's signature
// contradicts is taken out of service and mended. If it is the writer's that
// differs from all others, nobody is, but managers publish nothing until they agree again.
func TestDifferentContents(t *testing.T) {
	ca := trusttest.New(t)
	m1 := newNode(t, "m1", gossip.Manager).secure(ca)
	newNode(t, "m2", gossip.Manager).secure(ca) // its key is trusted before anybody starts
	m1.start()
	first := m1.put("victim", "as it was written")
	m1.putMany("k", 500)
	m1.mint()
	m2 := startNode(t, "m2", gossip.Manager, m1)
	w1, w2, w1log := newNode(t, "w1", gossip.Worker, m1), startNode(t, "w2", gossip.Worker, m1), &logLines{}
	w1.o.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(w1log, t.Output()), nil))
	w1.start()
	all := []*testNode{m2, w1, w2}
	for _, n := range all {
		n.caughtUp(first + 1)
	}

	// A worker's.
	w1.forge("victim", "as it was written", "as it is no more!")
	part := m1.put("victim", "overwritten, and so in the digest")
	for i := range 20 {
		m1.put("later", fmt.Sprint(i))
	}
	last := m1.put("later", "last")
	named := fmt.Sprintf("the contents part at entry %d (", part)
	eventually(t, "w1 finds out that it is wrong, and since which entry", func() bool { return w1log.contain(named) })
	w1.caughtUp(last)
	w2.caughtUp(last)
	wantSame(t, m1, w1, w2)
	eventually(t, "w1 holds what the others hold", func() bool {
		digest := m1.self().AppliedDigest
		return digest != "" && w1.self().AppliedDigest == digest && w2.self().AppliedDigest == digest
	})
	if got := w2.get("/metrics").body; !strings.Contains(got, "qs_digest_convictions_total 0") {
		t.Error("w2 was right, and taken out of service")
	}

	// The writer's.
	eventually(t, "nothing differs", func() bool { return m1.self().PublishStopped == "" && m2.self().PublishStopped == "" })
	m1.forge("victim", "overwritten, and so in the digest", "overwritten, and so in the digesT")
	part = m1.put("victim", "again")
	last = m1.put("later", "still")
	for _, n := range []*testNode{m1, m2} {
		eventually(t, n.o.Name+" publishes nothing, and says from which entry on they differ", func() bool {
			return strings.Contains(n.self().PublishStopped, fmt.Sprintf("the contents part at entry %d", part))
		})
		if a := n.do(http.MethodPost, "/v1/snapshots", nil); a.code != http.StatusServiceUnavailable || !strings.Contains(a.body, "publication is stopped") {
			t.Errorf("%s: publish: %d %s", n.o.Name, a.code, a.body)
		}
		if !strings.Contains(n.get("/metrics").body, "qs_publish_stopped 1") {
			t.Errorf("%s: the metric does not tell", n.o.Name)
		}
	}
	for _, n := range all {
		n.caughtUp(last)
		if a := n.get("/readyz"); a.code != http.StatusOK {
			t.Errorf("%s is out of service because the writer's copy is wrong: %s", n.o.Name, a.body)
		}
	}
	m1.stop()
	if err := os.RemoveAll(filepath.Join(m1.o.Data, storeDir)); err != nil { // it is made anew of the log
		t.Fatal(err)
	}
	m1.o.Join = []string{m2.p.Addrs().Gossip} // its own address is another one now
	m1.start()
	last = m1.put("later", "and on")
	for _, n := range []*testNode{m1, m2} {
		n.caughtUp(last)
		eventually(t, n.o.Name+" publishes again", func() bool { return n.self().PublishStopped == "" })
	}
	m1.mint()
}
