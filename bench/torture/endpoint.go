package torture

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/internal/fleet"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/txlog"
)

// answerLimit is how long a client waits for an answer.
const answerLimit = 10 * time.Second

// endpoint is where clients talk to a node, through all its lives.
type endpoint struct {
	name       string
	place      fleet.Place
	http, resp string
	peer       string
	client     *trust.Credentials // reads and writes
	operator   *trust.Credentials // looks after nodes
	asClient   *http.Client
	asOperator *http.Client
}

func newEndpoint(n *fleet.Node, at fleet.Place, client, operator *trust.Credentials) *endpoint {
	e := &endpoint{name: n.Name, place: at, http: n.Addrs.HTTP, resp: n.Addrs.RESP, peer: n.Addrs.Peer, client: client, operator: operator}
	e.asClient, e.asOperator = e.newHTTP(client), e.newHTTP(operator)
	return e
}

func (e *endpoint) newHTTP(who *trust.Credentials) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: e.place.Dial, DisableCompression: true, MaxIdleConnsPerHost: 16,
		TLSClientConfig: who.ClientConfig(trust.Want(e.name, trust.NodeRoles()...)),
	}}
}

func (e *endpoint) close() {
	e.asClient.CloseIdleConnections()
	e.asOperator.CloseIdleConnections()
}

// answer is what came for a request, all of it.
type answer struct {
	code int
	pos  txlog.Pos
	body []byte
}

// ask makes a request; an answer that was cut off is an error.
func (e *endpoint) ask(ctx context.Context, c *http.Client, method, path, body string) (a answer, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+e.http+path, strings.NewReader(body))
	if err != nil {
		return a, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.code = resp.StatusCode
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		return a, err
	}
	if text := resp.Header.Get("Qs-Pos"); text != "" {
		a.pos, err = txlog.ParsePos(text)
	}
	return a, err
}

// status is what a node says of itself.
type status struct {
	State       string    `json:"state"`
	AppliedSeq  uint64    `json:"applied_seq"`
	AppliedHash string    `json:"applied_hash"`
	HeadSeq     uint64    `json:"head_seq"`
	Digest      string    `json:"applied_digest"`
	Error       string    `json:"error"`
	Seen        []seenAs  `json:"-"` // how it sees the others
	At          time.Time `json:"-"`
}

// seenAs is how a node sees another one.
type seenAs struct{ name, state string }

func (e *endpoint) status(ctx context.Context) (s status, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	a, err := e.ask(ctx, e.asClient, http.MethodGet, "/v1/status", "")
	if err != nil {
		return s, err
	}
	var all struct {
		Members []struct {
			Name string `json:"name"`
			status
		} `json:"members"`
	}
	if err := json.Unmarshal(a.body, &all); err != nil {
		return s, fmt.Errorf("status of %s: %w", e.name, err)
	}
	if a.code != http.StatusOK || len(all.Members) == 0 {
		return s, fmt.Errorf("status of %s: %d %.100q", e.name, a.code, a.body)
	}
	s = all.Members[0].status
	s.At = time.Now()
	for _, m := range all.Members[1:] {
		s.Seen = append(s.Seen, seenAs{m.Name, m.State})
	}
	return s, nil
}

// ready reports whether a node says that it may get traffic.
func (e *endpoint) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	a, err := e.ask(ctx, e.asClient, http.MethodGet, "/readyz", "")
	if err == nil && a.code != http.StatusOK {
		err = fmt.Errorf("%s is not ready: %d %.200s", e.name, a.code, a.body)
	}
	return err
}

// publish has a manager mint.
func (e *endpoint) publish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	a, err := e.ask(ctx, e.asOperator, http.MethodPost, "/v1/snapshots", "")
	if err == nil && a.code != http.StatusOK {
		err = fmt.Errorf("publish on %s: %d %.200s", e.name, a.code, a.body)
	}
	return err
}

// snapshots returns the infohashes of what a node holds, by seq.
func (e *endpoint) snapshots(ctx context.Context) (map[uint64]string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	a, err := e.ask(ctx, e.asClient, http.MethodGet, "/v1/snapshots", "")
	if err != nil {
		return nil, err
	}
	var list struct {
		Snapshots []struct {
			Seq      uint64 `json:"seq"`
			InfoHash string `json:"infohash"`
		} `json:"snapshots"`
	}
	if err := json.Unmarshal(a.body, &list); err != nil || a.code != http.StatusOK {
		return nil, fmt.Errorf("snapshots of %s: %d %.100q: %w", e.name, a.code, a.body, err)
	}
	all := map[uint64]string{}
	for _, s := range list.Snapshots {
		all[s.Seq] = s.InfoHash
	}
	return all, nil
}

// metrics returns what a node's present process counts, by the names and labels of it.
func (e *endpoint) metrics(ctx context.Context) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	a, err := e.ask(ctx, e.asClient, http.MethodGet, "/metrics", "")
	if err != nil {
		return nil, err
	}
	if a.code != http.StatusOK {
		return nil, fmt.Errorf("metrics of %s: %d %.100q", e.name, a.code, a.body)
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(a.body)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			all[name] = v
		}
	}
	return all, nil
}

// pairs reads all that a node holds.
func (e *endpoint) pairs(ctx context.Context) (r Rest, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	a, err := e.ask(ctx, e.asClient, http.MethodGet, "/v1/scan", "")
	if err != nil {
		return r, err
	}
	if a.code != http.StatusOK {
		return r, fmt.Errorf("scan of %s: %d %.200s", e.name, a.code, a.body)
	}
	r = Rest{Node: e.name, Pos: a.pos, Pairs: map[string]Mark{}}
	for line := range strings.Lines(string(a.body)) {
		var pair struct {
			Key   string  `json:"key"`
			Value string  `json:"value"`
			Error *string `json:"error"`
		}
		if err := json.Unmarshal([]byte(line), &pair); err != nil || pair.Error != nil {
			return r, fmt.Errorf("scan of %s: %.200s: %w", e.name, line, err)
		}
		mark, ok := ParseMark([]byte(pair.Value))
		if !ok {
			r.Garbled = append(r.Garbled, pair.Key)
		}
		r.Pairs[pair.Key] = mark
	}
	return r, nil
}

// respConn is a Redis client's connection.
type respConn struct {
	conn net.Conn
	in   *bufio.Reader
}

// errRESP is an error that the server answered.
type errRESP string

func (e errRESP) Error() string { return string(e) }

func (e *endpoint) dialRESP(ctx context.Context) (*respConn, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	raw, err := e.place.Dial(ctx, "tcp", e.resp)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, e.client.ClientConfig(trust.Want(e.name, trust.NodeRoles()...)))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return &respConn{conn, bufio.NewReader(conn)}, nil
}

func (c *respConn) close() { _ = c.conn.Close() }

func (c *respConn) send(commands ...[]string) error {
	var b strings.Builder
	for _, words := range commands {
		fmt.Fprintf(&b, "*%d\r\n", len(words))
		for _, w := range words {
			fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
		}
	}
	_ = c.conn.SetDeadline(time.Now().Add(answerLimit))
	_, err := io.WriteString(c.conn, b.String())
	return err
}

// reply reads one that is no array; null is not there.
func (c *respConn) reply() (text string, there bool, err error) {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return "", false, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	switch line[:min(1, len(line))] {
	case "+", ":":
		return line[1:], true, nil
	case "-":
		return "", false, errRESP(line[1:])
	case "$":
		n, err := strconv.Atoi(line[1:])
		if err != nil || n < 0 {
			return "", false, err
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(c.in, b); err != nil {
			return "", false, err
		}
		return string(b[:n]), true, nil
	}
	return "", false, fmt.Errorf("RESP reply %.40q", line)
}
