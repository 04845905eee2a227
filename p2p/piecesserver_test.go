package p2p

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/qs-peer/qs-peer/chunker"
	"github.com/qs-peer/qs-peer/internal/durable"
)

// stockpile is a source's file, whole, and whom it knows.
type stockpile struct {
	payload
	store   *store
	witness *witness
	path    string

	mu    sync.Mutex // guards peers
	peers map[string]Peer
}

func newStockpile(t testing.TB, size int64) *stockpile {
	t.Helper()
	p := newPayload(t, size)
	path := p.file(t)
	f, err := durable.OS.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	good := make([]bool, p.torrent.Pieces())
	for i := range good {
		good[i] = true
	}
	s := &stockpile{payload: p, witness: new(witness), path: path, peers: map[string]Peer{
		"a1": {Colo: "a"}, "a2": {Colo: "a"}, "b1": {Colo: "b"}, "b2": {Colo: "b"},
	}}
	s.store = newStore(p.torrent, f, good, s.witness)
	t.Cleanup(func() { s.store.close() })
	return s
}

func (s *stockpile) held(ih chunker.InfoHash) error {
	if ih != s.torrent.InfoHash() {
		return ErrNotHeld
	}
	return nil
}

func (s *stockpile) have(ih chunker.InfoHash) ([]bool, error) { return s.store.whichGood(), s.held(ih) }
func (s *stockpile) holds(ih chunker.InfoHash, i int) error {
	return errors.Join(s.held(ih), s.store.holds(i))
}
func (s *stockpile) open(ih chunker.InfoHash, i int) (*openPiece, error) { return s.store.open(i) }
func (s *stockpile) asker(name string) (Peer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[name]
	return p, p.Colo == "a"
}

// piece returns what piece i is.
func (p payload) piece(i int) []byte {
	off := int64(i) * p.torrent.PieceLength()
	return p.data[off : off+p.torrent.PieceSize(i)]
}

// serveSource serves the peer protocol on ln until the test ends.
func serveSource(t testing.TB, ln net.Listener, o ServerOptions) (*Server, string) {
	t.Helper()
	s := NewServer(o)
	srv := new(http.Server)
	s.Attach(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return s, ln.Addr().String()
}

func listenTCP(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func askAs(t testing.TB, name string) *Client {
	c := NewClient(ClientOptions{Name: name})
	t.Cleanup(c.Close)
	return c
}

// TestPieces: every piece arrives as it is, from a real swarm's file.
func TestPieces(t *testing.T) {
	p := newPayload(t, 3<<20+7)
	manager := newNode(t, "manager", true)
	if err := manager.Seed(p.torrent, p.file(t)); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	_, addr := serveSource(t, listenTCP(t), ServerOptions{Pieces: manager.Swarm, Registerer: reg})
	c := askAs(t, "w1")
	have, err := c.Have(t.Context(), Target{Addr: addr}, p.torrent.InfoHash(), p.torrent.Pieces())
	if err != nil {
		t.Fatal(err)
	}
	for i := range p.torrent.Pieces() {
		if !have[i] {
			t.Errorf("piece %d is not held", i)
		}
		buf := make([]byte, p.torrent.PieceSize(i))
		if err := c.Piece(t.Context(), Target{Addr: addr}, p.torrent.InfoHash(), i, buf); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf, p.piece(i)) {
			t.Errorf("piece %d is another", i)
		}
	}
	if _, err := c.Have(t.Context(), Target{Addr: addr}, chunker.InfoHash{1}, 1); !errors.Is(err, ErrNotHeld) {
		t.Errorf("an unknown snapshot: %v", err)
	}
	if err := c.Piece(t.Context(), Target{Addr: addr}, chunker.InfoHash{1}, 0, make([]byte, 1)); !errors.Is(err, ErrNotHeld) {
		t.Errorf("a piece of an unknown snapshot: %v", err)
	}
	manager.Drop(p.torrent.InfoHash())
	if err := c.Piece(t.Context(), Target{Addr: addr}, p.torrent.InfoHash(), 0, make([]byte, p.torrent.PieceSize(0))); !errors.Is(err, ErrNotHeld) {
		t.Errorf("a piece of a dropped snapshot: %v", err)
	}
	n, err := testutil.GatherAndCount(reg, "qs_p2p_pieces_served_total", "qs_p2p_pieces_served_bytes_total", "qs_p2p_piece_send_seconds")
	if err != nil || n == 0 {
		t.Errorf("%d metrics, %v", n, err)
	}
}

// TestPieceRequests asks for what is no piece, in every way.
func TestPieceRequests(t *testing.T) {
	s := newStockpile(t, 200_000)
	_, addr := serveSource(t, listenTCP(t), ServerOptions{Pieces: s})
	_, empty := serveSource(t, listenTCP(t), ServerOptions{})
	ih := s.torrent.InfoHash().String()
	for _, test := range []struct {
		addr, path, name string
		want             int
	}{
		{addr, ih + "/piece/0", "a1", 200},
		{addr, ih + "/piece/3", "a1", 200},
		{addr, ih + "/piece/4", "a1", 400},
		{addr, ih + "/piece/-1", "a1", 400},
		{addr, ih + "/piece/-0", "a1", 400},
		{addr, ih + "/piece/+1", "a1", 400},
		{addr, ih + "/piece/01", "a1", 400},
		{addr, ih + "/piece/0x1", "a1", 400},
		{addr, ih + "/piece/1e0", "a1", 400},
		{addr, ih + "/piece/1_0", "a1", 400},
		{addr, ih + "/piece/%201", "a1", 400},
		{addr, ih + "/piece/9223372036854775807", "a1", 400},
		{addr, ih + "/piece/9223372036854775808", "a1", 400},
		{addr, ih + "/piece/99999999999999999999999999999999", "a1", 400},
		{addr, ih + "/piece/x", "a1", 400},
		{addr, ih + "/piece/", "a1", 404},
		{addr, ih + "/piece/0/0", "a1", 404},
		{addr, ih + "/piece/0", "", 400},
		{addr, ih + "/piece/0", "\xff", 400},
		{addr, ih + "/piece/0", string(bytes.Repeat([]byte("n"), 129)), 400},
		{addr, ih[:38] + "/piece/0", "a1", 400},
		{addr, ih[:38] + "zz/piece/0", "a1", 400},
		{addr, ih[:38] + "zz/have", "a1", 400},
		{addr, "1111111111111111111111111111111111111111/piece/0", "a1", 404},
		{addr, "1111111111111111111111111111111111111111/have", "", 404},
		{addr, ih + "/have", "", 200},
		{empty, ih + "/piece/0", "a1", 404},
		{empty, ih + "/have", "a1", 404},
	} {
		req, err := http.NewRequest(http.MethodGet, "http://"+test.addr+snapshotPath+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(protocolHeader, protocolVersion)
		req.Header.Set(nodeHeader, test.name)
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Errorf("%s by %q: %v", test.path, test.name, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != test.want {
			t.Errorf("%s by %q: %s, want %d: %.200s", test.path, test.name, resp.Status, test.want, body)
		}
	}
}

// TestPiecesByColo: a piece goes to one of a colo until that one is gone, and
// what an asker says of itself does not matter.
func TestPiecesByColo(t *testing.T) {
	s := newStockpile(t, 300_000)
	_, addr := serveSource(t, listenTCP(t), ServerOptions{Pieces: s})
	ask := func(c *Client, i int) error {
		return c.Piece(t.Context(), Target{Addr: addr}, s.torrent.InfoHash(), i, make([]byte, s.torrent.PieceSize(i)))
	}
	a1, a2, b1 := askAs(t, "a1"), askAs(t, "a2"), askAs(t, "b1")
	x1, x2 := askAs(t, "x1"), askAs(t, "x2") // unheard of
	for _, step := range []struct {
		name   string
		c      *Client
		piece  int
		holder string // "": it is sent
	}{
		{"the first", a1, 0, ""},
		{"its neighbour", a2, 0, "a1"},
		{"another colo", b1, 0, ""},
		{"another piece", a2, 1, ""},
		{"the same one again", a1, 0, ""},
		{"nowhere", x1, 0, ""},
		{"nowhere either", x2, 0, "x1"},
	} {
		err := ask(step.c, step.piece)
		var leased *LeasedError
		if errors.As(err, &leased); (step.holder == "") != (err == nil) || leased != nil && leased.Holder != step.holder {
			t.Errorf("%s: %v, want holder %q", step.name, err, step.holder)
		}
	}
	// Its connections end, and what it got is free.
	a1.Close()
	eventually(t, "what a node that is gone got is sent to its neighbour", func() bool { return ask(a2, 0) == nil })
}

// TestOnePieceAtATime: an asker's second piece waits for its first, others do not.
func TestOnePieceAtATime(t *testing.T) {
	s := newStockpile(t, 128<<20) // pieces beyond what a socket takes
	_, addr := serveSource(t, smallBuffers{listenTCP(t)}, ServerOptions{Pieces: s})
	size := int64(s.torrent.PieceLength())
	path := func(i int) string {
		return fmt.Sprintf("GET %s HTTP/1.1\r\nHost: x\r\nQs-Protocol: 1\r\nQs-Node: a1\r\n\r\n", piecePath(s.torrent.InfoHash(), i))
	}
	dial := func() (net.Conn, *bufio.Reader) {
		c, err := (&net.Dialer{Control: smallReceive}).Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c, bufio.NewReaderSize(c, 16)
	}
	first, firstIn := dial()
	second, secondIn := dial()
	io.WriteString(first, path(0))
	if _, err := firstIn.ReadByte(); err != nil { // it begins
		t.Fatal(err)
	}
	io.WriteString(second, path(1))
	// Another asker gets a piece meanwhile.
	if err := askAs(t, "b1").Piece(t.Context(), Target{Addr: addr}, s.torrent.InfoHash(), 2, make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	second.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := secondIn.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the second piece came beside the first: %v", err)
	}
	// The first ends, one way or the other, and the second begins.
	first.Close()
	second.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := secondIn.ReadByte(); err != nil {
		t.Fatal(err)
	}
}

// smallBuffers makes connections that take little.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		err = c.(*net.TCPConn).SetWriteBuffer(16 << 10)
	}
	return c, err
}

func smallReceive(_, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10)
	})
	return errors.Join(err, serr)
}

// TestDamagedPieces: what can not be read any more is not held.
func TestDamagedPieces(t *testing.T) {
	s := newStockpile(t, 1<<20)
	_, addr := serveSource(t, listenTCP(t), ServerOptions{Pieces: s})
	if err := os.Truncate(s.path, 500_000); err != nil {
		t.Fatal(err)
	}
	c := askAs(t, "a1")
	last := s.torrent.Pieces() - 1
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := c.Piece(ctx, Target{Addr: addr}, s.torrent.InfoHash(), last, make([]byte, s.torrent.PieceSize(last)))
	if !errors.Is(err, ErrNotHeld) {
		t.Errorf("got %v, want ErrNotHeld", err)
	}
	have, err := c.Have(ctx, Target{Addr: addr}, s.torrent.InfoHash(), s.torrent.Pieces())
	if err != nil {
		t.Fatal(err)
	}
	for i, ok := range have {
		if whole := int64(i)*s.torrent.PieceLength()+s.torrent.PieceSize(i) <= 500_000; ok != whole {
			t.Errorf("piece %d is offered: %t", i, ok)
		}
	}
	s.witness.expect(t, "damaged")
}

// TestTooManyRequests: more than an asker may have are refused, and do not
// spoil it for others.
func TestTooManyRequests(t *testing.T) {
	s := newStockpile(t, 128<<20)
	server, addr := serveSource(t, smallBuffers{listenTCP(t)}, ServerOptions{Pieces: s})
	const n = 1000
	busy := make(chan string, n)
	var conns []net.Conn
	for range n {
		c, err := (&net.Dialer{Control: smallReceive}).Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nQs-Protocol: 1\r\nQs-Node: a1\r\n\r\n", piecePath(s.torrent.InfoHash(), 0))
		go func() {
			line, _ := bufio.NewReaderSize(c, 64).ReadString('\n')
			if line != "" {
				busy <- line
			}
		}()
	}
	refused := 0
	for refused < n-maxAskerRequests {
		select {
		case line := <-busy:
			switch line {
			case "HTTP/1.1 503 Service Unavailable\r\n":
				refused++
			case "HTTP/1.1 200 OK\r\n": // the one that is being sent
			default:
				t.Fatalf("answer %q", line)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("only %d of %d requests were refused", refused, n)
		}
	}
	if err := askAs(t, "b1").Piece(t.Context(), Target{Addr: addr}, s.torrent.InfoHash(), 0, make([]byte, s.torrent.PieceLength())); err != nil {
		t.Errorf("another asker: %v", err)
	}
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "nothing is left of the asker", func() bool {
		server.pieces.mu.Lock()
		defer server.pieces.mu.Unlock()
		return server.pieces.askers["a1"] == nil
	})
}
