package contender

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
)

var redis = &Contender{
	Name: "redis",
	Settings: "full sync of as many bytes in values of 1,000; diskless at both ends, all replicas in one (repl-diskless-sync, " +
		"repl-diskless-sync-max-replicas, repl-diskless-load on-empty-db), no compression; complete once loaded",
	tools: []tool{{[]string{"redis-server"}, "redis-server"}},
	race:  raceRedis,
}

const (
	redisPort  = 6379
	redisKey   = 16
	redisValue = 1000
)

func raceRedis(ctx context.Context, r *race) error {
	flags := []string{"--port", strconv.Itoa(redisPort), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no",
		"--enable-debug-command", "local", "--rdbcompression", "no", "--repl-timeout", "86400",
		"--repl-diskless-sync", "yes", "--repl-diskless-sync-max-replicas", strconv.Itoa(len(r.Sinks)), "--repl-diskless-sync-delay", "60",
		"--repl-diskless-load", "on-empty-db"}
	master, err := r.start(r.Source, r.Dir, "redis-server", append(flags, "--dir", r.Dir)...)
	if err != nil {
		return err
	}
	if err := master.listens(ctx, redisPort); err != nil {
		return err
	}
	if err := fill(ctx, r.Source, r.File.Size); err != nil {
		return fmt.Errorf("fill the source: %w", err)
	}
	keys, err := ask(ctx, r.Source, "DBSIZE")
	if err != nil {
		return err
	}
	if err := r.begin(); err != nil {
		return err
	}
	replicas := make([]*process, len(r.Sinks))
	for i, host := range r.Sinks {
		replicas[i], err = r.start(host, r.sinkDir(i), "redis-server", append(flags, "--dir", r.sinkDir(i),
			"--replicaof", r.Source.Addr().String()+" "+strconv.Itoa(redisPort))...)
		if err != nil {
			return err
		}
	}
	err = r.finish(ctx, func(ctx context.Context, sink int) (time.Time, error) {
		return replicas[sink].until(ctx, func() error { return synced(ctx, r.Sinks[sink], keys) })
	})
	if err != nil {
		return err
	}
	stats, err := ask(ctx, r.Source, "INFO stats")
	if err != nil {
		return err
	}
	if r.payload, err = number(redisSent, []byte(stats)); err != nil {
		return err
	}
	want, err := ask(ctx, r.Source, "DEBUG DIGEST")
	if err != nil {
		return err
	}
	for i, host := range r.Sinks {
		if got, err := ask(ctx, host, "DEBUG DIGEST"); err != nil {
			return err
		} else if got != want {
			return fmt.Errorf("sink %d: its data has the digest %s, the source's %s", i+1, got, want)
		}
	}
	return nil
}

var redisSent = regexp.MustCompile(`total_net_repl_output_bytes:([0-9]+)`)

// synced returns nil once the replica on host is linked to its master and has
// all keys.
func synced(ctx context.Context, host *lab.Host, keys string) error {
	info, err := ask(ctx, host, "INFO replication")
	if err != nil {
		return err
	}
	if !strings.Contains(info, "master_link_status:up") {
		return errors.New("the replica is not synchronised")
	}
	got, err := ask(ctx, host, "DBSIZE")
	if err == nil && got != keys {
		err = fmt.Errorf("the replica has %s keys, the source %s", got, keys)
	}
	return err
}

// fill puts random values of size bytes in all, keys included, into the server
// on host.
func fill(ctx context.Context, host *lab.Host, size int64) (err error) {
	conn, err := dialRedis(ctx, host)
	if err != nil {
		return err
	}
	defer conn.Close()
	count := max(1, size/(redisKey+redisValue))
	const done = "+OK\r\n"
	replies := make(chan error, 1)
	go func() {
		r := bufio.NewReader(conn)
		for range count {
			if line, err := r.ReadString('\n'); err != nil || line != done {
				replies <- errors.Join(fmt.Errorf("the server answered %q", line), err)
				_ = conn.Close() // so that the writer stops
				return
			}
		}
		replies <- nil
	}()
	random := rand.NewChaCha8([32]byte{3})
	w := bufio.NewWriterSize(conn, 1<<20)
	pair := make([]byte, 8+redisValue)
	for i := range count {
		binary.BigEndian.PutUint64(pair, uint64(i))
		random.Read(pair[8:])
		// An error stays with the writer.
		fmt.Fprintf(w, "*3\r\n$3\r\nSET\r\n$%d\r\n%016x\r\n$%d\r\n", redisKey, pair[:8], redisValue)
		w.Write(pair[8:])
		w.WriteString("\r\n")
	}
	err = w.Flush()
	if refused := <-replies; refused != nil {
		return refused
	}
	return err
}

// dialRedis connects to the server on host, over that host's own loopback, until
// ctx ends.
func dialRedis(ctx context.Context, host *lab.Host) (net.Conn, error) {
	conn, err := host.Dial(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", redisPort))
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return conn, nil
}

// ask sends a command without arguments of its own to the server on host and
// returns the answer (RESP2; inline commands).
func ask(ctx context.Context, host *lab.Host, command string) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := dialRedis(ctx, host)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, command+"\r\n"); err != nil {
		return "", err
	}
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimSpace(line[1:])
	switch kind {
	case '+', ':':
		return rest, nil
	case '$':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 || n > 1<<20 {
			return "", fmt.Errorf("%s was answered by %q", command, line)
		}
		text := make([]byte, n)
		_, err = io.ReadFull(r, text)
		return string(text), err
	}
	return "", fmt.Errorf("%s was answered by %q", command, line)
}
