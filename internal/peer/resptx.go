package peer

import (
	"github.com/qs-peer/qs-peer/lmdbstore"
	"github.com/qs-peer/qs-peer/txlog"
)

// respWrite is a writing command, parsed.
type respWrite struct {
	ops   []txlog.Op
	count bool // answer how many of the keys existed; otherwise OK
}

// respTx is what MULTI began.
type respTx struct {
	writes []*respWrite
	held   int64 // of the connection's lease, for all arguments
	broken bool  // a command could not be queued: EXEC refuses
}

func parseSet(args [][]byte) (*respWrite, error) {
	if len(args) > 2 {
		return nil, respErrorf("ERR SET takes no options here, and %s is one: values do not expire, and writes are unconditional",
			upper(args[2]))
	}
	return parseMSet(args)
}

func parseMSet(args [][]byte) (*respWrite, error) {
	if len(args)%2 != 0 {
		return nil, respErrorf("ERR wrong number of arguments for 'mset' command")
	}
	w := &respWrite{}
	for i := 0; i < len(args); i += 2 {
		if err := checkKey(args[i]); err != nil {
			return nil, err
		}
		w.ops = append(w.ops, txlog.Op{Kind: txlog.Put, Key: args[i], Value: args[i+1]})
	}
	return w, nil
}

func parseDel(args [][]byte) (*respWrite, error) {
	w := &respWrite{count: true}
	for _, key := range args {
		if err := checkKey(key); err != nil {
			return nil, err
		}
		w.ops = append(w.ops, txlog.Op{Kind: txlog.Delete, Key: key})
	}
	return w, nil
}

// writing returns how a writing command runs on its own.
func writing(parse func([][]byte) (*respWrite, error)) func(*respConn, [][]byte) error {
	return func(c *respConn, args [][]byte) error {
		if err := c.server.writer.check(); err != nil {
			return err
		}
		w, err := parse(args)
		if err != nil {
			return err
		}
		return c.apply([]*respWrite{w})
	}
}

// queueing returns how a writing command joins a transaction.
func queueing(parse func([][]byte) (*respWrite, error)) func(*respConn, [][]byte) error {
	return func(c *respConn, args [][]byte) error {
		if err := c.server.writer.check(); err != nil {
			return err
		}
		w, err := parse(args)
		if err != nil {
			return err
		}
		// What the connection holds now are the transaction's arguments and this command's.
		if size := c.lease.n - c.outHeld; size > maxRequest {
			return &txlog.LimitError{What: "transaction", Got: size, Min: 1, Max: maxRequest}
		}
		if !c.tx.broken {
			c.tx.writes = append(c.tx.writes, w)
		}
		c.out = respSimple(c.out, "QUEUED")
		return nil
	}
}

// spoil makes EXEC refuse the transaction, which needs no memory from then on.
func (c *respConn) spoil() {
	c.lease.give(c.tx.held)
	*c.tx = respTx{broken: true}
}

// endTx takes the transaction away from the connection.
func (c *respConn) endTx() {
	c.lease.give(c.tx.held)
	c.tx = nil
}

func (c *respConn) multi([][]byte) error {
	if c.tx != nil {
		return respErrorf("ERR MULTI calls can not be nested")
	}
	c.tx = &respTx{}
	c.out = respSimple(c.out, "OK")
	return nil
}

func (c *respConn) discard([][]byte) error {
	if c.tx == nil {
		return respErrorf("ERR DISCARD without MULTI")
	}
	c.endTx()
	c.out = respSimple(c.out, "OK")
	return nil
}

func (c *respConn) exec([][]byte) error {
	tx := c.tx
	if tx == nil {
		return respErrorf("ERR EXEC without MULTI")
	}
	defer c.endTx()
	switch {
	case tx.broken:
		return respErrorf("EXECABORT Transaction discarded because of previous errors.")
	case len(tx.writes) == 0:
		c.out = respArray(c.out, 0)
		return nil
	}
	mark := len(c.out)
	c.out = respArray(c.out, len(tx.writes))
	err := c.apply(tx.writes)
	if err != nil {
		c.out = c.out[:mark]
	}
	return err
}

// apply makes the writes one entry and appends their answers. What DEL answers
// is counted just before the entry is made: another client's write may come
// between.
func (c *respConn) apply(writes []*respWrite) error {
	counts, err := c.countDeleted(writes)
	if err != nil {
		return err
	}
	var ops []txlog.Op
	for _, w := range writes {
		ops = append(ops, w.ops...)
	}
	pos, err := c.server.writer.write(c.server.ctx, ops)
	if err != nil {
		return err
	}
	c.lastSeq = pos.Seq
	for i, w := range writes {
		if w.count {
			c.out = respInt(c.out, counts[i])
		} else {
			c.out = respSimple(c.out, "OK")
		}
	}
	return nil
}

// countDeleted returns, for each DEL, how many of its keys exist when its turn
// comes.
func (c *respConn) countDeleted(writes []*respWrite) ([]int64, error) {
	counts := make([]int64, len(writes))
	changed := map[string]bool{} // by the writes so far: whether the key exists
	err := c.server.reads.view(func(tx *lmdbstore.Tx) error {
		for i, w := range writes {
			for _, op := range w.ops {
				if w.count {
					exists, known := changed[string(op.Key)]
					if !known {
						var err error
						if _, exists, err = tx.Get(op.Key); err != nil {
							return err
						}
					}
					if exists {
						counts[i]++
					}
				}
				if len(writes) > 1 || w.count {
					changed[string(op.Key)] = op.Kind == txlog.Put
				}
			}
		}
		return nil
	})
	return counts, err
}
