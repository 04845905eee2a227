package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// What clients do.
const (
	hotKeys   = 400
	bulkKeys  = 6_000
	bulkBatch = 150                    // operations of an import's transaction
	readGap   = 15 * time.Millisecond  // between two reads of a client
	writeGap  = 12 * time.Millisecond  // between two writes of a client
	bulkGap   = 900 * time.Millisecond // between two transactions of an import
	lostGap   = 50 * time.Millisecond  // after a failure
)

// load is what clients do to a fleet. What they are told goes into the history.
type load struct {
	history *History
	writer  *endpoint
	rng     *rand.PCG
	wg      sync.WaitGroup
	quiet   sync.RWMutex // held by whoever wants no writes
	clients int

	importing atomic.Int64  // imports under way
	importNow chan struct{} // asks for one at once

	acked, unknown, refused, reads, failed atomic.Int64
}

func newLoad(h *History, writer *endpoint, seed uint64) *load {
	return &load{history: h, writer: writer, rng: rand.NewPCG(seed, 0x6c6f6164), importNow: make(chan struct{}, 1)}
}

// client is one that writes one after the other.
type client struct {
	*load
	name string
	id   uint64
	n    uint64
	rng  *rand.Rand
}

func (l *load) newClient(kind string) *client {
	l.clients++
	return &client{load: l, name: fmt.Sprintf("%s-%d", kind, l.clients), id: uint64(l.clients), rng: rand.New(rand.NewPCG(l.rng.Uint64(), l.rng.Uint64()))}
}

func (c *client) mark() Mark {
	c.n++
	return Mark(c.id<<40 | c.n)
}

func hotKey(n int) string  { return "hot/" + strconv.Itoa(n) }
func bulkKey(n int) string { return "bulk/" + strconv.Itoa(n) }

// start sets the clients going until ctx ends.
func (l *load) start(ctx context.Context, nodes []*endpoint) {
	for range 2 {
		c := l.newClient("http")
		l.wg.Go(func() { c.run(ctx, writeGap, c.put) })
	}
	c := l.newClient("txn")
	l.wg.Go(func() { c.run(ctx, 3*writeGap, c.txn) })
	r := &respWriter{client: l.newClient("resp")}
	l.wg.Go(func() {
		defer r.hangUp()
		r.run(ctx, writeGap, r.set)
	})
	b := l.newClient("import")
	l.wg.Go(func() { b.imports(ctx) })
	for _, n := range nodes {
		reader := l.newClient("reader")
		l.wg.Go(func() { reader.reads(ctx, n) })
		blind := l.newClient("blind")
		l.wg.Go(func() { blind.blindReads(ctx, n) })
	}
}

// run writes with pauses in between.
func (c *client) run(ctx context.Context, gap time.Duration, write func(context.Context) Outcome) {
	for ctx.Err() == nil {
		c.quiet.RLock()
		outcome := write(ctx)
		c.quiet.RUnlock()
		if outcome != Acked {
			gap := max(gap, lostGap)
			rest(ctx, gap)
			continue
		}
		rest(ctx, time.Duration(float64(gap)*(0.5+c.rng.Float64())))
	}
}

// rest waits, or until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// did records a write.
func (c *client) did(w Write) Outcome {
	w.Client, w.Ended = c.name, time.Now()
	c.history.write(w)
	switch w.Outcome {
	case Acked:
		c.acked.Add(1)
	case Refused:
		c.load.refused.Add(1)
	default:
		c.unknown.Add(1)
	}
	return w.Outcome
}

// put writes one pair over HTTP.
func (c *client) put(ctx context.Context) Outcome {
	op := Op{hotKey(c.rng.IntN(hotKeys)), c.mark()}
	return c.post(ctx, http.MethodPut, "/v1/kv/"+op.Key, string(op.Mark.Value()), []Op{op})
}

// txn writes a few pairs at once, and deletes some.
func (c *client) txn(ctx context.Context) Outcome {
	ops := []Op{{hotKey(c.rng.IntN(hotKeys)), c.mark()}}
	for range c.rng.IntN(12) {
		op := Op{Key: hotKey(c.rng.IntN(hotKeys))}
		if c.rng.IntN(3) > 0 {
			op.Mark = c.mark()
		}
		ops = append(ops, op)
	}
	return c.transact(ctx, ops)
}

func (c *client) transact(ctx context.Context, ops []Op) Outcome {
	type operation struct {
		Op    string  `json:"op"`
		Key   string  `json:"key"`
		Value *string `json:"value,omitempty"`
	}
	var body struct {
		Ops []operation `json:"ops"`
	}
	for _, op := range ops {
		o := operation{Op: "delete", Key: op.Key}
		if op.Mark != 0 {
			value := string(op.Mark.Value())
			o.Op, o.Value = "put", &value
		}
		body.Ops = append(body.Ops, o)
	}
	text, err := json.Marshal(body)
	if err != nil {
		panic(err) // of strings only
	}
	return c.post(ctx, http.MethodPost, "/v1/txn", string(text), ops)
}

func (c *client) post(ctx context.Context, method, path, body string, ops []Op) Outcome {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	w := Write{Ops: ops, Began: time.Now()}
	a, err := c.writer.ask(ctx, c.writer.asClient, method, path, body)
	if err == nil {
		switch a.code {
		case http.StatusOK:
			var said struct {
				Seq  uint64 `json:"seq"`
				Hash string `json:"hash"`
			}
			if err := json.Unmarshal(a.body, &said); err == nil {
				w.Outcome, w.Pos.Seq = Acked, said.Seq
				w.Pos.Hash, _ = parseHash(said.Hash)
			}
		case http.StatusMisdirectedRequest:
			w.Outcome = Refused
		}
	}
	return c.did(w)
}

// imports writes many large pairs at once, now and then or when asked.
func (c *client) imports(ctx context.Context) {
	c.run(ctx, 0, func(ctx context.Context) Outcome {
		c.quiet.RUnlock()
		select {
		case <-c.importNow:
		case <-time.After(bulkGap):
		case <-ctx.Done():
		}
		c.quiet.RLock()
		return c.importSome(ctx, c.rng.IntN(bulkKeys), bulkBatch)
	})
}

func (c *client) importSome(ctx context.Context, first, n int) Outcome {
	ops := make([]Op, n)
	for i := range ops {
		ops[i] = Op{bulkKey((first + i) % bulkKeys), c.mark() | bulk}
	}
	c.importing.Add(1)
	defer c.importing.Add(-1)
	return c.transact(ctx, ops)
}

// fill imports every large pair once.
func (c *client) fill(ctx context.Context) error {
	for n := 0; n < bulkKeys; n += 500 {
		if c.importSome(ctx, n, 500) != Acked {
			return fmt.Errorf("the first import was not acknowledged at pair %d", n)
		}
	}
	return nil
}

// respWriter writes over RESP.
type respWriter struct {
	*client
	conn *respConn
}

func (c *respWriter) hangUp() {
	if c.conn != nil {
		c.conn.close()
		c.conn = nil
	}
}

func (c *respWriter) set(ctx context.Context) Outcome {
	if c.conn == nil {
		var err error
		if c.conn, err = c.writer.dialRESP(ctx); err != nil {
			return Unknown // nothing was asked
		}
	}
	op := Op{hotKey(c.rng.IntN(hotKeys)), c.mark()}
	w := Write{Ops: []Op{op}, Began: time.Now()}
	err := c.conn.send([]string{"SET", op.Key, string(op.Mark.Value())}, []string{"INFO"})
	if err == nil {
		_, _, err = c.conn.reply()
	}
	refusal, answered := err.(errRESP)
	if answered && strings.HasPrefix(string(refusal), "READONLY") {
		w.Outcome = Refused
	}
	if err == nil || answered {
		info, _, infoErr := c.conn.reply()
		if _, after, ok := strings.Cut(info, "qs_last_write_seq:"); err == nil && infoErr == nil && ok {
			number, _, _ := strings.Cut(after, "\r\n")
			if seq, parseErr := strconv.ParseUint(number, 10, 64); parseErr == nil {
				w.Outcome, w.Pos.Seq = Acked, seq
			}
		}
		err = infoErr
	}
	if err != nil {
		c.hangUp()
	}
	return c.did(w)
}

// someKey is mostly one that changes often.
func (c *client) someKey() string {
	if c.rng.IntN(4) == 0 {
		return bulkKey(c.rng.IntN(bulkKeys))
	}
	return hotKey(c.rng.IntN(hotKeys))
}

// reads asks a node for one key after the other, over HTTP.
func (c *client) reads(ctx context.Context, n *endpoint) {
	for ctx.Err() == nil {
		r := Read{Node: n.name, Key: c.someKey(), Began: time.Now()}
		asking, cancel := context.WithTimeout(ctx, answerLimit)
		a, err := n.ask(asking, n.asClient, http.MethodGet, "/v1/kv/"+r.Key, "")
		cancel()
		r.Ended, r.Pos = time.Now(), a.pos
		gap := readGap
		switch {
		case err != nil || a.code != http.StatusOK && (a.code != http.StatusNotFound || a.pos.IsZero()):
			c.failed.Add(1)
			gap = lostGap
		default:
			if a.code == http.StatusOK {
				r.is(a.body)
			}
			c.saw(r)
		}
		rest(ctx, gap)
	}
}

// is sets what was read.
func (r *Read) is(value []byte) {
	var ok bool
	if r.Mark, ok = ParseMark(value); !ok {
		r.Garbled = string(value[:min(len(value), 64)]) + " "
	}
}

func (c *client) saw(r Read) {
	c.load.reads.Add(1)
	c.history.read(r)
}

// blindReads asks a node for one key after the other, over RESP.
func (c *client) blindReads(ctx context.Context, n *endpoint) {
	var conn *respConn
	defer func() {
		if conn != nil {
			conn.close()
		}
	}()
	for ctx.Err() == nil {
		r := Read{Node: n.name, Key: c.someKey(), Blind: true, Began: time.Now()}
		var err error
		if conn == nil {
			conn, err = n.dialRESP(ctx)
		}
		var value string
		var there bool
		if err == nil {
			if err = conn.send([]string{"GET", r.Key}); err == nil {
				value, there, err = conn.reply()
			}
		}
		r.Ended = time.Now()
		if err != nil {
			c.failed.Add(1)
			if _, answered := err.(errRESP); !answered && conn != nil {
				conn.close()
				conn = nil
			}
			rest(ctx, lostGap)
			continue
		}
		if there {
			r.is([]byte(value))
		}
		c.saw(r)
		rest(ctx, 2*readGap)
	}
}
