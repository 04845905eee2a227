package p2p

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/qs-peer/qs-peer/chunker"
)

// TestAria2 has a stock client open our .torrent and download from a swarm. The
// only thing that is added is a tracker, because aria2 can not be told a peer.
func TestAria2(t *testing.T) {
	aria2, err := exec.LookPath("aria2c")
	if err != nil {
		t.Skip("aria2c is not in PATH: apt-get install aria2")
	}
	p := newPayload(t, 5<<20+12345)
	manager := newNode(t, "manager", true)
	seed(t, manager, p)

	tracker := httptest.NewServer(trackerOf(t, manager.Addr))
	defer tracker.Close()
	dir := t.TempDir()
	metainfo := filepath.Join(dir, "snapshot.torrent")
	if err := os.WriteFile(metainfo, withTracker(p.torrent, tracker.URL+"/announce"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), aria2, "--no-conf", "--dir="+dir, "--seed-time=0", "--enable-dht=false", "--enable-dht6=false",
		"--bt-enable-lpd=false", "--enable-peer-exchange=false", "--listen-port="+strconv.Itoa(freePort(t)), "--follow-torrent=false",
		"--file-allocation=none", "--stop=50", "--summary-interval=0", "--check-certificate=false", metainfo)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("aria2c: %v\n%s", err, out)
	}
	p.checkFile(t, filepath.Join(dir, p.torrent.Name()))
	if sent := manager.client.ConnStats(); sent.BytesWrittenData.Int64() < p.torrent.Size() {
		t.Errorf("the swarm sent %d bytes of payload, want at least %d", sent.BytesWrittenData.Int64(), p.torrent.Size())
	}
}

// withTracker returns the metainfo with an announce URL before the info
// dictionary, which stays as it is.
func withTracker(t *chunker.Torrent, url string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "d8:announce%d:%s4:info%se", len(url), url, t.InfoBytes())
	return b.Bytes()
}

// trackerOf is a tracker that knows one peer.
func trackerOf(t *testing.T, addr string) http.HandlerFunc {
	tcp, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	compact := binary.BigEndian.AppendUint16(tcp.IP.To4(), uint16(tcp.Port))
	return func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "d8:intervali60e5:peers%d:%se", len(compact), compact)
	}
}

// freePort returns a port that was free a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
