package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/txlog"
)

// redisClient connects a stock client to a node's RESP port.
func redisClient(t *testing.T, n *testNode) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: n.p.Addrs().RESP, MaxRetries: -1})
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRESPWithClient(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	c, ctx := redisClient(t, m), t.Context()

	if v, err := c.Ping(ctx).Result(); v != "PONG" || err != nil {
		t.Fatal(v, err)
	}
	if v, err := c.Set(ctx, "a", "1", 0).Result(); v != "OK" || err != nil {
		t.Fatal(v, err)
	}
	if v, err := c.Get(ctx, "a").Result(); v != "1" || err != nil {
		t.Error(v, err)
	}
	if a := m.get("/v1/kv/a"); a.body != "1" {
		t.Errorf("over HTTP: %q", a.body)
	}
	if err := c.Get(ctx, "nope").Err(); !errors.Is(err, redis.Nil) {
		t.Error(err)
	}
	if err := c.MSet(ctx, "b", "2", "\x00\xff", "", "c", "333").Err(); err != nil {
		t.Error(err)
	}
	if v, err := c.MGet(ctx, "a", "nope", "\x00\xff", "c").Result(); err != nil || fmt.Sprintf("%q", v) != `["1" <nil> "" "333"]` {
		t.Errorf("%q %v", v, err)
	}
	if n, err := c.Exists(ctx, "a", "a", "nope", "b").Result(); n != 3 || err != nil {
		t.Error(n, err)
	}
	if n, err := c.StrLen(ctx, "c").Result(); n != 3 || err != nil {
		t.Error(n, err)
	}
	if n, err := c.StrLen(ctx, "nope").Result(); n != 0 || err != nil {
		t.Error(n, err)
	}
	if n, err := c.Del(ctx, "a", "nope", "b", "b").Result(); n != 2 || err != nil {
		t.Error(n, err)
	}
	if n, err := c.Exists(ctx, "a", "b").Result(); n != 0 || err != nil {
		t.Error(n, err)
	}
	if v, err := c.Echo(ctx, "hello").Result(); v != "hello" || err != nil {
		t.Error(v, err)
	}
	if v, err := c.Info(ctx).Result(); err != nil || !strings.Contains(v, "role:master") || !strings.Contains(v, "qs_state:serving") {
		t.Error(v, err)
	}
	if cmds, err := c.Command(ctx).Result(); err != nil || cmds["get"] == nil || cmds["get"].Arity != 2 || cmds["mset"].StepCount != 2 {
		t.Errorf("%v %v", cmds, err)
	}
}

func TestRESPTransactions(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	c, ctx := redisClient(t, m), t.Context()
	if err := c.Set(ctx, "old", "1", 0).Err(); err != nil {
		t.Fatal(err)
	}
	before := m.self().AppliedSeq
	var del *redis.IntCmd
	_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, "new", "1", 0)
		p.MSet(ctx, "x", "1", "y", "2")
		del = p.Del(ctx, "old", "new", "nope", "old")
		p.Set(ctx, "new", "2", 0)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if del.Val() != 2 {
		t.Errorf("deleted %d keys", del.Val())
	}
	if after := m.self().AppliedSeq; after != before+1 {
		t.Errorf("a transaction took entries %d to %d", before+1, after)
	}
	if text, _ := m.export(); text != `{"key":"new","value":"2"}`+"\n"+`{"key":"x","value":"1"}`+"\n"+`{"key":"y","value":"2"}`+"\n" {
		t.Errorf("holds %s", text)
	}

	// One that can not be queued leaves nothing behind.
	_, err = c.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, "lost", "1", 0)
		p.Get(ctx, "x")
		return nil
	})
	if err == nil {
		t.Error("a transaction with GET was taken")
	}
	if n := c.Exists(ctx, "lost").Val(); n != 0 {
		t.Error("half a transaction was applied")
	}
}

// TestRESPConversation talks to a node line by line.
func TestRESPConversation(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	conn, err := net.Dial("tcp", m.p.Addrs().RESP)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for _, tt := range []struct{ send, want string }{
		{"PING", "+PONG"},
		{"ping", "+PONG"},
		{"NOSUCH a", "-ERR unknown command 'NOSUCH'"},
		{"GET", "-ERR wrong number of arguments for 'get' command"},
		{"GET a b", "-ERR wrong number of arguments for 'get' command"},
		{"SET a 1 EX 10", "-ERR SET takes no options here, and EX is one: values do not expire, and writes are unconditional"},
		{"SET a 1 NX", "-ERR SET takes no options here, and NX is one: values do not expire, and writes are unconditional"},
		{"MSET a 1 b", "-ERR wrong number of arguments for 'mset' command"},
		{"SET " + strings.Repeat("k", 512) + " 1", "-ERR key is 512 bytes long; allowed are 1 to 511"},
		{"GET " + strings.Repeat("k", 512), "-ERR key is 512 bytes long; allowed are 1 to 511"},
		{"SELECT 0", "+OK"},
		{"SELECT 1", "-ERR DB index is out of range: there is only database 0"},
		{"EXEC", "-ERR EXEC without MULTI"},
		{"DISCARD", "-ERR DISCARD without MULTI"},
		{"MULTI", "+OK"},
		{"MULTI", "-ERR MULTI calls can not be nested"},
		{"EXEC", "-EXECABORT Transaction discarded because of previous errors."},
		{"MULTI", "+OK"},
		{"EXEC", "*0"},
		{"MULTI", "+OK"},
		{"SET a 1", "+QUEUED"},
		{"DISCARD", "+OK"},
		{"EXISTS a", ":0"},
		{"MULTI", "+OK"},
		{"SET a 1", "+QUEUED"},
		{"SCAN 0", "-ERR SCAN can not be queued: a transaction takes SET, DEL and MSET"},
		{"EXEC", "-EXECABORT Transaction discarded because of previous errors."},
		{"EXISTS a", ":0"},
		{"COMMAND COUNT", ":17"},
		{"COMMAND DOCS", "*0"},
		{"SCAN x", "-ERR invalid cursor"},
		{"SCAN 12345", "-ERR cursor 12345 is not known here: it is of another node or too old; scan again from 0"},
		{"SCAN 0 MATCH *a*", `-ERR MATCH "*a*" is not a prefix and one * at its end: other patterns are not supported`},
		{"SCAN 0 MATCH", "-ERR syntax error: SCAN cursor [MATCH prefix*] [COUNT n]"},
		{"SCAN 0 TYPE string", "-ERR syntax error: SCAN cursor [MATCH prefix*] [COUNT n]"},
		{"SCAN 0 COUNT 0", "-ERR value is not an integer or out of range"},
		{fmt.Sprintf("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\n%s", txlog.MaxValue+1, strings.Repeat("v", txlog.MaxValue+1)),
			"-ERR value is 16777217 bytes long; allowed are 0 to 16777216"},
		{"EXISTS a", ":0"},
		{"QUIT", "+OK"},
	} {
		go fmt.Fprintf(conn, "%s\r\n", tt.send)
		got, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("%.40q: %v", tt.send, err)
		}
		if got = strings.TrimRight(got, "\r\n"); got != tt.want {
			t.Errorf("%.40q: %q, want %q", tt.send, got, tt.want)
		}
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after QUIT: %v", err)
	}
}

// TestRESPGarbage is answered and hung up on.
func TestRESPGarbage(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	for _, in := range []string{"*1\r\n$9223372036854775806\r\nx\r\n", "*9999999999\r\n", "*1\r\nx\r\n", strings.Repeat("x", maxInline)} {
		conn, err := net.Dial("tcp", m.p.Addrs().RESP)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, in)
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "-ERR Protocol error: ") {
			t.Errorf("%.40q: %q %v", in, line, err)
		}
		conn.Close()
	}
	if a := m.get("/readyz"); a.code != 200 {
		t.Errorf("afterwards %d %s", a.code, a.body)
	}
}

func TestRESPScan(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	var keys []string
	for i := range 95 {
		keys = append(keys, fmt.Sprintf("k%02d", i))
	}
	keys = append(keys, "k*", "m")
	slices.Sort(keys)
	m.do("POST", "/v1/txn", strings.NewReader(txnOf(keys)))
	c, ctx := redisClient(t, m), t.Context()
	for _, tt := range []struct {
		match string
		count int64
		want  []string
	}{
		{"", 0, keys},
		{"*", 1000, keys},
		{"k*", 7, keys[:96]},
		{"k5*", 3, keys[51:61]},
		{`k\*`, 3, []string{"k*"}},
		{"m", 3, []string{"m"}},
		{"k", 3, nil},
		{"nope*", 3, nil},
	} {
		var got []string
		var cursor uint64
		for {
			page, next, err := c.Scan(ctx, cursor, tt.match, tt.count).Result()
			if err != nil {
				t.Fatal(err)
			}
			if tt.count > 0 && len(page) > int(tt.count) {
				t.Errorf("%q: %d keys at once", tt.match, len(page))
			}
			got = append(got, page...)
			if cursor = next; cursor == 0 {
				break
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.match, got, tt.want)
		}
	}
}

func TestCursorsAreForgotten(t *testing.T) {
	c := newCursors()
	first := c.put([]byte("a"))
	for range keptCursors - 1 {
		c.put([]byte("b"))
	}
	if key, ok := c.get(first); !ok || string(key) != "a" {
		t.Error("forgotten too early")
	}
	c.put([]byte("b"))
	if _, ok := c.get(first); ok {
		t.Error("still known")
	}
	if _, ok := c.get(first + keptCursors + 1); ok {
		t.Error("one that was never handed out is known")
	}
}

func TestRESPOnWorker(t *testing.T) {
	t.Parallel()
	m := startNode(t, "m1", gossip.Manager)
	seq := m.put("a", "1")
	w := newNode(t, "w1", gossip.Worker, m)
	w.o.RESPUnix = filepath.Join(t.TempDir(), "resp.sock")
	w.start()
	w.caughtUp(seq)
	c := redis.NewClient(&redis.Options{Network: "unix", Addr: w.p.Addrs().RESPUnix, MaxRetries: -1})
	defer c.Close()
	ctx := t.Context()
	if v, err := c.Get(ctx, "a").Result(); v != "1" || err != nil {
		t.Error(v, err)
	}
	writer := m.p.Addrs().HTTP
	for _, err := range []error{c.Set(ctx, "a", "2", 0).Err(), c.Del(ctx, "a").Err(), c.MSet(ctx, "a", "2").Err()} {
		if err == nil || !strings.HasPrefix(err.Error(), "READONLY ") || !strings.Contains(err.Error(), writer) {
			t.Errorf("got %v", err)
		}
	}
	_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, "a", "2", 0).Err() })
	if err == nil {
		t.Error("a transaction was taken")
	}
	if v := c.Info(ctx).Val(); !strings.Contains(v, "role:slave") {
		t.Error(v)
	}
}

func TestRESPNotReady(t *testing.T) {
	w := startNode(t, "w1", gossip.Worker)
	c := redisClient(t, w)
	if err := c.Get(context.Background(), "a").Err(); err == nil || !strings.HasPrefix(err.Error(), "LOADING ") {
		t.Errorf("got %v", err)
	}
}
