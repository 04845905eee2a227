package peer

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/lmdbstore"
)

// replyCost is what an answer takes for a value besides its bytes.
const replyCost = 16

// respCommand is how a command is answered.
type respCommand struct {
	verb     trust.Verb // the right that it takes
	min, max int        // arguments, the name included; max 0: any number
	flags    string
	firstKey int
	lastKey  int
	step     int
	// run appends the answer to c.out, or returns the error to answer.
	run func(c *respConn, args [][]byte) error
	// queue takes the command into the connection's transaction instead.
	queue func(c *respConn, args [][]byte) error
	// inMulti marks what works the same within a transaction.
	inMulti bool
}

func (cmd *respCommand) takes(n int) bool {
	return n >= cmd.min && (cmd.max == 0 || n <= cmd.max)
}

// respCommands is filled by a function because COMMAND lists it.
var respCommands = makeRESPCommands()

func makeRESPCommands() map[string]*respCommand {
	cmds := map[string]*respCommand{
		"GET":     {verb: trust.VerbRead, min: 2, max: 2, flags: "readonly", firstKey: 1, lastKey: 1, step: 1, run: (*respConn).get},
		"MGET":    {verb: trust.VerbRead, min: 2, flags: "readonly", firstKey: 1, lastKey: -1, step: 1, run: (*respConn).mget},
		"EXISTS":  {verb: trust.VerbRead, min: 2, flags: "readonly", firstKey: 1, lastKey: -1, step: 1, run: (*respConn).exists},
		"STRLEN":  {verb: trust.VerbRead, min: 2, max: 2, flags: "readonly", firstKey: 1, lastKey: 1, step: 1, run: (*respConn).strlen},
		"SCAN":    {verb: trust.VerbRead, min: 2, flags: "readonly", run: (*respConn).scan},
		"SET":     {verb: trust.VerbWrite, min: 3, flags: "write", firstKey: 1, lastKey: 1, step: 1, run: writing(parseSet), queue: queueing(parseSet)},
		"DEL":     {verb: trust.VerbWrite, min: 2, flags: "write", firstKey: 1, lastKey: -1, step: 1, run: writing(parseDel), queue: queueing(parseDel)},
		"MSET":    {verb: trust.VerbWrite, min: 3, flags: "write", firstKey: 1, lastKey: -1, step: 2, run: writing(parseMSet), queue: queueing(parseMSet)},
		"MULTI":   {verb: trust.VerbWrite, min: 1, max: 1, flags: "fast", inMulti: true, run: (*respConn).multi},
		"EXEC":    {verb: trust.VerbWrite, min: 1, max: 1, flags: "fast", inMulti: true, run: (*respConn).exec},
		"DISCARD": {verb: trust.VerbWrite, min: 1, max: 1, flags: "fast", inMulti: true, run: (*respConn).discard},
		"PING":    {verb: trust.VerbStatus, min: 1, max: 2, flags: "fast", run: (*respConn).ping},
		"ECHO":    {verb: trust.VerbStatus, min: 2, max: 2, flags: "fast", run: (*respConn).echo},
		"QUIT":    {verb: trust.VerbStatus, min: 1, max: 1, flags: "fast", inMulti: true, run: (*respConn).bye},
		"INFO":    {verb: trust.VerbStatus, min: 1, flags: "fast", run: (*respConn).info},
		"SELECT":  {verb: trust.VerbStatus, min: 2, max: 2, flags: "fast", run: (*respConn).choose},
	}
	cmds["COMMAND"] = &respCommand{verb: trust.VerbStatus, min: 1, flags: "fast", run: func(c *respConn, args [][]byte) error {
		return c.describeCommands(cmds, args)
	}}
	return cmds
}

func respErrorf(format string, args ...any) error { return respError(fmt.Sprintf(format, args...)) }

func (c *respConn) get(args [][]byte) error {
	return c.view(args, func(tx *lmdbstore.Tx) error {
		size, _, err := tx.Size(args[0])
		if err != nil {
			return err
		}
		if err := c.room(size + replyCost); err != nil {
			return err
		}
		return c.appendValue(tx, args[0])
	})
}

// mget looks twice: for how long the answer is, and for the answer.
func (c *respConn) mget(args [][]byte) error {
	return c.view(args, func(tx *lmdbstore.Tx) error {
		size := replyCost
		err := each(tx, args, func(n int, _ bool) error {
			if size += n + replyCost; size > maxRequest {
				return respErrorf("ERR the values asked for are longer than %d bytes together: ask for fewer keys", maxRequest)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := c.room(size); err != nil {
			return err
		}
		c.out = respArray(c.out, len(args))
		for _, key := range args {
			if err := c.appendValue(tx, key); err != nil {
				return err
			}
		}
		return nil
	})
}

// each passes the lengths of the keys' values to fn.
func each(tx *lmdbstore.Tx, keys [][]byte, fn func(size int, ok bool) error) error {
	for _, key := range keys {
		n, ok, err := tx.Size(key)
		if err != nil {
			return err
		}
		if err := fn(n, ok); err != nil {
			return err
		}
	}
	return nil
}

func (c *respConn) exists(args [][]byte) error {
	n := int64(0)
	err := c.view(args, func(tx *lmdbstore.Tx) error {
		return each(tx, args, func(_ int, ok bool) error {
			if ok {
				n++
			}
			return nil
		})
	})
	if err == nil {
		c.out = respInt(c.out, n)
	}
	return err
}

func (c *respConn) strlen(args [][]byte) error {
	n := int64(0)
	err := c.view(args, func(tx *lmdbstore.Tx) error {
		size, _, err := tx.Size(args[0])
		n = int64(size)
		return err
	})
	if err == nil {
		c.out = respInt(c.out, n)
	}
	return err
}

// view runs fn in a read transaction after checking keys. When room fails in it, it is
// run again once there is some. After an error nothing of an answer is left.
func (c *respConn) view(keys [][]byte, fn func(*lmdbstore.Tx) error) error {
	for _, key := range keys {
		if err := checkKey(key); err != nil {
			return err
		}
	}
	mark, held := len(c.out), c.outHeld
	return c.lease.whileShort(c.server.ctx, func() error {
		err := c.server.reads.view(fn)
		if err != nil {
			c.out, c.outHeld = c.out[:mark], held
		}
		return err
	})
}

// room makes room for n bytes of an answer, which are given back once it is sent.
func (c *respConn) room(n int) error {
	if err := c.lease.reserve(int64(n)); err != nil {
		return err
	}
	c.outHeld += int64(n)
	c.out = slices.Grow(c.out, n)
	return nil
}

// appendValue appends a value, for which there is room already. While it is copied a long
// one is there twice, and takes as much of the lease.
func (c *respConn) appendValue(tx *lmdbstore.Tx, key []byte) error {
	twice := 0
	v, ok, err := tx.GetWithin(key, func(n int) error {
		twice = n
		return c.lease.reserve(int64(n))
	})
	switch {
	case err != nil:
		return err
	case ok:
		c.out = respBulk(c.out, v)
	default:
		c.out = respNull(c.out)
	}
	c.lease.give(int64(twice))
	return nil
}

func (c *respConn) ping(args [][]byte) error {
	if len(args) == 0 {
		c.out = respSimple(c.out, "PONG")
		return nil
	}
	return c.echo(args)
}

func (c *respConn) echo(args [][]byte) error {
	return c.answer(args[0])
}

// answer appends bytes of the client's own.
func (c *respConn) answer(b []byte) error {
	n := int64(len(b) + replyCost)
	if err := c.lease.take(c.server.ctx, n); err != nil {
		return err
	}
	c.outHeld += n
	c.out = respBulk(c.out, b)
	return nil
}

func (c *respConn) bye([][]byte) error {
	c.quit = true
	c.out = respSimple(c.out, "OK")
	return nil
}

func (c *respConn) choose(args [][]byte) error {
	if string(args[0]) != "0" {
		return respErrorf("ERR DB index is out of range: there is only database 0")
	}
	c.out = respSimple(c.out, "OK")
	return nil
}

func (c *respConn) info([][]byte) error {
	s := c.server
	role := "slave"
	if s.writer.node.writer() {
		role = "master"
	}
	st, state := s.reads.status(), s.reads.store.State()
	text := fmt.Sprintf("# Server\r\nqs_version:%s\r\nqs_name:%s\r\nprocess_id:%d\r\n"+
		"# Replication\r\nrole:%s\r\nqs_state:%s\r\nqs_applied_seq:%d\r\nqs_applied_hash:%s\r\nqs_head_seq:%d\r\n"+
		"# Connection\r\nqs_last_write_seq:%d\r\n",
		s.version, s.name, os.Getpid(), role, st.State, state.Pos.Seq, state.Pos.Hash, max(st.Head.Seq, state.Pos.Seq), c.lastSeq)
	c.out = respBulk(c.out, text)
	return nil
}

func (c *respConn) describeCommands(cmds map[string]*respCommand, args [][]byte) error {
	if len(args) > 0 {
		if strings.EqualFold(string(args[0]), "COUNT") {
			c.out = respInt(c.out, int64(len(cmds)))
		} else {
			c.out = respArray(c.out, 0) // DOCS and the like: nothing is known
		}
		return nil
	}
	names := make([]string, 0, len(cmds))
	for name := range cmds {
		names = append(names, name)
	}
	slices.Sort(names)
	c.out = respArray(c.out, len(names))
	for _, name := range names {
		cmd := cmds[name]
		arity := cmd.min
		if cmd.max != cmd.min {
			arity = -cmd.min
		}
		c.out = respArray(c.out, 6)
		c.out = respBulk(c.out, strings.ToLower(name))
		c.out = respInt(c.out, int64(arity))
		c.out = respArray(c.out, 1)
		c.out = respSimple(c.out, cmd.flags)
		for _, n := range []int{cmd.firstKey, cmd.lastKey, cmd.step} {
			c.out = respInt(c.out, int64(n))
		}
	}
	return nil
}

// parseCount reads a positive number.
func parseCount(text []byte) (int, error) {
	n, err := strconv.Atoi(string(text))
	if err != nil || n < 1 {
		return 0, respErrorf("ERR value is not an integer or out of range")
	}
	return n, nil
}
