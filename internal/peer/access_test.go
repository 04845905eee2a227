package peer

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// mayDo is who may do what here, written down once more: it is what the tests hold
// trust.Role.May, every route and every command against.
var mayDo = map[trust.Verb][]trust.Role{
	trust.VerbRead:     {trust.RoleWorker, trust.RoleManager, trust.RoleClientRead, trust.RoleClientWrite},
	trust.VerbWrite:    {trust.RoleManager, trust.RoleClientWrite},
	trust.VerbSnapshot: {trust.RoleManager, trust.RoleOperator},
	trust.VerbScrub:    {trust.RoleOperator},
	trust.VerbStatus:   {trust.RoleWorker, trust.RoleManager, trust.RoleClientRead, trust.RoleClientWrite, trust.RoleOperator},
}

// requests are one for each method of each route, with the right that it takes and the
// status of the answer to somebody who has it.
var requests = []struct {
	method, path, body string
	verb               trust.Verb
	code               int
}{
	{"PUT", "/v1/kv/key", "value", trust.VerbWrite, 200},
	{"GET", "/v1/kv/key", "", trust.VerbRead, 200},
	{"HEAD", "/v1/kv/key", "", trust.VerbRead, 200},
	{"DELETE", "/v1/kv/other", "", trust.VerbWrite, 200},
	{"POST", "/v1/txn", `{"ops":[{"op":"put","key":"key","value":"value"}]}`, trust.VerbWrite, 200},
	{"GET", "/v1/scan", "", trust.VerbRead, 200},
	{"GET", "/v1/snapshots", "", trust.VerbStatus, 200},
	{"POST", "/v1/snapshots", "", trust.VerbSnapshot, 200},
	{"GET", "/v1/snapshots/" + strings.Repeat("a", 40) + "/torrent", "", trust.VerbStatus, 404},
	{"GET", "/v1/snapshots/" + strings.Repeat("a", 40) + "/manifest", "", trust.VerbStatus, 404},
	{"POST", "/v1/scrub?rate=0", "", trust.VerbScrub, 200},
	{"GET", "/v1/status", "", trust.VerbStatus, 200},
	{"GET", "/v1/progress", "", trust.VerbStatus, 404},
	{"GET", "/healthz", "", trust.VerbStatus, 200},
	{"GET", "/readyz", "", trust.VerbStatus, 200},
	{"GET", "/metrics", "", trust.VerbStatus, 200},
	{"GET", "/", "", trust.VerbStatus, 200},
	{"GET", "/elsewhere", "", trust.VerbStatus, 404},
	{"PUT", "/elsewhere", "", trust.VerbStatus, 404},
	{"PATCH", "/v1/kv/key", "", trust.VerbStatus, 405},
}

// commands are one for each RESP command, with the right that it takes and how the
// answer to somebody who has it begins.
var commands = []struct {
	line string
	verb trust.Verb
	want string
}{
	{"SET key value", trust.VerbWrite, "+OK"},
	{"GET key", trust.VerbRead, "$"},
	{"MGET key key", trust.VerbRead, "*2"},
	{"EXISTS key", trust.VerbRead, ":"},
	{"STRLEN key", trust.VerbRead, ":"},
	{"SCAN 0", trust.VerbRead, "*2"},
	{"DEL other", trust.VerbWrite, ":"},
	{"MSET key value", trust.VerbWrite, "+OK"},
	{"MULTI", trust.VerbWrite, "+OK"},
	{"EXEC", trust.VerbWrite, "-ERR EXEC without MULTI"},
	{"DISCARD", trust.VerbWrite, "-ERR DISCARD without MULTI"},
	{"PING", trust.VerbStatus, "+PONG"},
	{"ECHO x", trust.VerbStatus, "$1"},
	{"QUIT", trust.VerbStatus, "+OK"},
	{"INFO", trust.VerbStatus, "$"},
	{"SELECT 0", trust.VerbStatus, "+OK"},
	{"COMMAND", trust.VerbStatus, "*"},
}

// TestEveryEndpointIsTried finds routes, methods and commands that the tables above
// forget: a new one has to say there what right it takes.
func TestEveryEndpointIsTried(t *testing.T) {
	reg := prometheus.NewRegistry()
	api := &api{access: testAccess(reg), logger: slog.New(slog.DiscardHandler)}
	for _, route := range api.routes(reg) {
		pattern := regexp.QuoteMeta(strings.TrimSuffix(route.pattern, "{$}"))
		pattern = strings.ReplaceAll(pattern, regexp.QuoteMeta("{infohash}"), "[^/]+")
		switch route.pattern {
		case kvPrefix, "/":
			pattern += ".+"
		}
		for method, e := range route.methods {
			tried := false
			for _, r := range requests {
				if whole := regexp.MustCompile("^" + pattern + "$"); whole.MatchString(strings.Split(r.path, "?")[0]) && (r.method == method || method == anyMethod) {
					tried = tried || r.verb == e.verb
				}
			}
			if !tried || e.serve == nil {
				t.Errorf("%s %s takes the right to %q: no request of the table tries that", method, route.pattern, e.verb)
			}
		}
	}
	for name, cmd := range respCommands {
		if !slices.ContainsFunc(commands, func(c struct {
			line string
			verb trust.Verb
			want string
		}) bool {
			return strings.Fields(c.line)[0] == name && c.verb == cmd.verb
		}) {
			t.Errorf("%s takes the right to %q: no command of the table tries that", name, cmd.verb)
		}
	}
}

// secured is a manager that speaks TLS, and those who talk to it.
type secured struct {
	*testNode
	log   *logLines
	roles map[trust.Role]*trust.Credentials
}

func startSecured(t *testing.T, change func(*Options)) *secured {
	t.Helper()
	ca := trusttest.New(t)
	s := &secured{testNode: newNode(t, "m1", gossip.Manager).secure(ca), log: &logLines{}, roles: map[trust.Role]*trust.Credentials{}}
	s.o.Logger = slog.New(slog.NewJSONHandler(s.log, nil))
	if change != nil {
		change(&s.o)
	}
	for _, r := range trust.Roles() {
		s.roles[r] = ca.Open(t, r, "a-"+string(r))
	}
	s.start()
	return s
}

// config is how somebody connects to the node.
func (s *secured) config(who *trust.Credentials) *tls.Config {
	return who.ClientConfig(trust.Want("m1", trust.RoleManager))
}

func (s *secured) httpAs(t *testing.T, who *trust.Credentials) *http.Client {
	transport := &http.Transport{TLSClientConfig: s.config(who)}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// as is the node with requests sent by somebody.
func (s *secured) as(t *testing.T, who *trust.Credentials) *testNode {
	n := *s.testNode
	n.t, n.client = t, s.httpAs(t, who)
	return &n
}

// dialRESP opens a RESP connection as somebody.
func (s *secured) dialRESP(t *testing.T, who *trust.Credentials) net.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", s.p.Addrs().RESP, s.config(who))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// metric returns the value of one series of the node's metrics.
func (s *secured) metric(t *testing.T, series string) float64 {
	t.Helper()
	for line := range strings.Lines(s.get("/metrics").body) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

// refused returns how many refusals were counted.
func (s *secured) refused(t *testing.T, listener string, reason trust.Reason) float64 {
	t.Helper()
	return s.metric(t, fmt.Sprintf("qs_edge_refused_total{listener=%q,reason=%q}", listener, reason))
}

// TestHTTPRights has each role try each request: one test per cell of the table.
func TestHTTPRights(t *testing.T) {
	s := startSecured(t, nil)
	s.put("key", "value")
	forbidden := map[trust.Role]int{}
	for _, role := range trust.Roles() {
		n := s.as(t, s.roles[role])
		for _, r := range requests {
			t.Run(fmt.Sprintf("%s/%s/%s %s", role, r.verb, r.method, r.path), func(t *testing.T) {
				before := s.head()
				a := n.do(r.method, r.path, strings.NewReader(r.body))
				if slices.Contains(mayDo[r.verb], role) {
					if a.code != r.code {
						t.Errorf("%d %s, want %d", a.code, a.body, r.code)
					}
					return
				}
				forbidden[role]++
				if after := s.head(); after != before {
					t.Errorf("entry %d was written", after)
				}
				if r.method == http.MethodHead {
					if a.code != http.StatusForbidden {
						t.Errorf("%d", a.code)
					}
					return
				}
				var e errorBody
				a.json(t, &e)
				var roles []string
				for _, r := range mayDo[r.verb] {
					roles = append(roles, string(r))
				}
				if a.code != http.StatusForbidden || e.Role != string(role) || !slices.Equal(e.Roles, roles) || !strings.Contains(e.Error, roles[0]) {
					t.Errorf("%d %s", a.code, a.body)
				}
			})
		}
	}
	s.wantRefused(t, listenerHTTP, forbidden)
}

// TestRESPRights has each role try each command.
func TestRESPRights(t *testing.T) {
	s := startSecured(t, nil)
	s.put("key", "value")
	forbidden := map[trust.Role]int{}
	for _, role := range trust.Roles() {
		for _, c := range commands {
			t.Run(fmt.Sprintf("%s/%s/%s", role, c.verb, c.line), func(t *testing.T) {
				before := s.head()
				conn := s.dialRESP(t, s.roles[role])
				fmt.Fprintf(conn, "%s\r\n", c.line)
				got, err := bufio.NewReader(conn).ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if slices.Contains(mayDo[c.verb], role) {
					if !strings.HasPrefix(got, c.want) {
						t.Errorf("got %q, want %q", got, c.want)
					}
					return
				}
				forbidden[role]++
				if !strings.HasPrefix(got, "-NOPERM a-"+string(role)) || !strings.Contains(got, string(mayDo[c.verb][0])) {
					t.Errorf("got %q", got)
				}
				if after := s.head(); after != before {
					t.Errorf("entry %d was written", after)
				}
			})
		}
	}
	s.wantRefused(t, listenerRESP, forbidden)
}

// head returns the last entry that reads see, which are all.
func (s *secured) head() uint64 { return s.self().AppliedSeq }

// wantRefused checks that each role's refusals were counted, and logged once.
func (s *secured) wantRefused(t *testing.T, listener string, forbidden map[trust.Role]int) {
	t.Helper()
	total := 0
	for _, n := range forbidden {
		total += n
	}
	if got := s.refused(t, listener, trust.WrongRole); total == 0 || got != float64(total) {
		t.Errorf("counted %v refusals, want %d", got, total)
	}
	logged := map[string]int{}
	for _, l := range s.log.all(t) {
		if l["listener"] == listener && l["reason"] == string(trust.WrongRole) {
			logged[fmt.Sprint(l["who"])]++
		}
	}
	for role := range forbidden {
		if who := s.roles[role].Identity().String(); logged[who] != 1 {
			t.Errorf("%s was logged %d times", who, logged[who])
		}
	}
	if len(logged) != len(forbidden) {
		t.Errorf("logged of %v", logged)
	}
}

// TestRESPWithClientOverTLS uses a stock client.
func TestRESPWithClientOverTLS(t *testing.T) {
	s := startSecured(t, nil)
	client := func(role trust.Role) *redis.Client {
		c := redis.NewClient(&redis.Options{Addr: s.p.Addrs().RESP, TLSConfig: s.config(s.roles[role]), MaxRetries: -1})
		t.Cleanup(func() { c.Close() })
		return c
	}
	ctx := t.Context()
	w, r := client(trust.RoleClientWrite), client(trust.RoleClientRead)
	if err := w.Set(ctx, "a", "1", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if v, err := r.Get(ctx, "a").Result(); v != "1" || err != nil {
		t.Error(v, err)
	}
	if err := r.Set(ctx, "a", "2", 0).Err(); err == nil || !strings.HasPrefix(err.Error(), "NOPERM a-client-read has the role client-read") {
		t.Error(err)
	}
	_, err := r.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, "a", "2", 0).Err() })
	if err == nil || !strings.HasPrefix(err.Error(), "NOPERM ") {
		t.Error(err)
	}
	if v := w.Get(ctx, "a").Val(); v != "1" {
		t.Errorf("a is %q", v)
	}
}

// TestUnixSocketMode listens on a socket that is for its owner and group, and has
// every right on it, TLS or not.
func TestUnixSocketMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resp.sock")
	s := startSecured(t, func(o *Options) { o.RESPUnix = path })
	wantMode(t, path, 0o660)
	c := redis.NewClient(&redis.Options{Network: "unix", Addr: path, MaxRetries: -1})
	defer c.Close()
	if err := c.Set(t.Context(), "a", "1", 0).Err(); err != nil {
		t.Error(err)
	}
	if a := s.get("/v1/kv/a"); a.body != "1" {
		t.Errorf("over HTTP: %q", a.body)
	}
}

// logLines keeps what was logged as JSON.
type logLines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logLines) all(t *testing.T) (lines []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		m := map[string]any{}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, m)
	}
	return lines
}

// TestStrangers are refused by each listener, counted and logged, and others are not
// disturbed.
func TestStrangers(t *testing.T) {
	s := startSecured(t, nil)
	s.put("key", "value")
	other := trusttest.New(t)
	outsider := trusttest.Identity(trust.RoleClientWrite, "x")
	outsider.Domain = "other.example"
	raw := func(f trust.Files) *tls.Config {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}
	}
	for _, tt := range []struct {
		name   string
		config *tls.Config // nil: plain
		want   trust.Reason
	}{
		{"no certificate", &tls.Config{InsecureSkipVerify: true}, trust.NoCertificate},
		{"another authority", raw(other.Node(t, trust.RoleManager, "m2")), trust.UnknownAuthority},
		{"expired", raw(s.ca.Issue(t, t.TempDir(), trusttest.Identity(trust.RoleManager, "m2"), time.Now().Add(-time.Minute))), trust.Expired},
		{"another domain", raw(s.ca.Issue(t, t.TempDir(), outsider, time.Now().Add(time.Hour))), trust.WrongDomain},
		{"plain", nil, trust.NotTLS},
	} {
		for listener, addr := range map[string]string{listenerHTTP: s.p.Addrs().HTTP, listenerRESP: s.p.Addrs().RESP} {
			t.Run(tt.name+"/"+listener, func(t *testing.T) {
				before := s.refused(t, listener, tt.want)
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(patience))
				if tt.config != nil {
					conn = tls.Client(conn, tt.config)
				}
				_, _ = io.WriteString(conn, "GET /v1/kv/key HTTP/1.1\r\nHost: x\r\n\r\n")
				text, _ := io.ReadAll(conn)
				if strings.Contains(string(text), "value") {
					t.Errorf("was served %q", text)
				}
				eventually(t, "it is counted", func() bool { return s.refused(t, listener, tt.want) == before+1 })
			})
		}
	}
	if a := s.get("/v1/kv/key"); a.body != "value" {
		t.Errorf("others get %d %q", a.code, a.body)
	}
}

// TestNoIdentityNoRights serves a connection without an identity on a node that speaks
// TLS, as a mistake in the wiring would.
func TestNoIdentityNoRights(t *testing.T) {
	reg := prometheus.NewRegistry()
	a := testAccess(reg)
	a.tls = true
	for _, v := range trust.Verbs() {
		if a.check(caller{}, v) == nil {
			t.Errorf("may %s", v)
		}
	}
}

// TestWriterOverTLS asks a worker to write: it names the writer's URL, of https.
func TestWriterOverTLS(t *testing.T) {
	s := startSecured(t, nil)
	seq := s.put("a", "1")
	w := startNode(t, "w1", gossip.Worker, s.testNode)
	w.caughtUp(seq)
	a := w.do(http.MethodPut, "/v1/kv/a", strings.NewReader("2"))
	var e errorBody
	a.json(t, &e)
	if want := "https://" + s.p.Addrs().HTTP; a.code != http.StatusMisdirectedRequest || e.Writer != want {
		t.Errorf("%d %s, want %s", a.code, a.body, want)
	}
}
