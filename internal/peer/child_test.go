package peer

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// childEnv makes the test's binary run a manager: childOptions in JSON.
const childEnv = "QS_TEST_PEER_CHILD"

type childOptions struct {
	Data                    string
	TLS                     trust.Files
	TrustedKeys, SigningKey string
}

// child is a manager in a process of its own, so that its memory is its own.
type child struct {
	addrs Addrs
	pid   int
	in    io.Writer
	out   *bufio.Reader
}

// runChild is the child's main: it says where it listens, gives memory that it does not
// use back for each line that it reads, and runs until its input ends.
func runChild(text string) error {
	var c childOptions
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	const free = "127.0.0.1:0"
	p, err := Start(context.Background(), Options{
		Data: c.Data, TLS: c.TLS, TrustedKeys: c.TrustedKeys, SigningKey: c.SigningKey, Role: gossip.Manager, Version: "test",
		GossipAddr: free, SwarmAddr: free, PeerAddr: free, HTTPAddr: free, RESPAddr: free,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(p.Addrs()); err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		debug.FreeOSMemory()
		fmt.Println("freed")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.Close(ctx)
}

// startChild runs a manager with the settings of Go's memory that qs-peer runs with.
func startChild(t *testing.T, ca *trusttest.Authority) *child {
	t.Helper()
	o := newNode(t, "m1", gossip.Manager).secure(ca).o
	text, err := json.Marshal(childOptions{o.Data, o.TLS, o.TrustedKeys, o.SigningKey})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(text), "GOGC=200", "GOMEMLIMIT=72MiB")
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the node ended with %v", err)
		}
	})
	c := &child{pid: cmd.Process.Pid, in: in, out: bufio.NewReader(out)}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(line, &c.addrs); err != nil {
		t.Fatal(err)
	}
	return c
}

// rest has the process give back what it does not use, and returns what it does.
func (c *child) rest(t *testing.T) int64 {
	t.Helper()
	if _, err := io.WriteString(c.in, "free\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return c.memory(t)
}

// memory returns the memory of the process that is not a file's, in bytes.
func (c *child) memory(t *testing.T) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.pid))
	if err != nil {
		t.Error(err)
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "RssAnon:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Error(err)
			}
			return kib << 10
		}
	}
	t.Error("no RssAnon in /proc")
	return 0
}

// peak measures the greatest memory until stop is called and it has not risen any more for
// a while: crowds take time to get to where they wait.
func (c *child) peak(t *testing.T) (stop func() int64) {
	const calm, most = 500 * time.Millisecond, 10 * time.Second
	done := make(chan struct{})
	var peak int64
	var wg sync.WaitGroup
	wg.Go(func() {
		done := done
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		risen, enough := time.Now(), (<-chan time.Time)(nil)
		for {
			if now := c.memory(t); now > peak {
				peak, risen = now, time.Now()
			}
			if enough != nil && time.Since(risen) >= calm {
				return
			}
			select {
			case <-tick.C:
			case <-done:
				done, enough = nil, time.After(most)
			case <-enough:
				return
			}
		}
	})
	stop = sync.OnceValue(func() int64 {
		close(done)
		wg.Wait()
		return peak
	})
	t.Cleanup(func() { stop() })
	return stop
}
