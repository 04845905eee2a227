package edge

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The abuser is this test's binary, started once more, so that what it uses is not
// taken for the server's. It comes from 127.0.0.2.
const (
	abuserEnv = "EDGE_TEST_ABUSE"      // MODE COUNT ADDRESS
	certEnv   = "EDGE_TEST_ABUSE_CERT" // a directory with cert.pem and key.pem, for mode member
)

// abuser is the process.
type abuser struct {
	in  io.Closer
	cmd *exec.Cmd
	out *bufio.Reader
}

// startAbuser returns when its connections have been opened.
func startAbuser(t testing.TB, mode string, count int, addr string) *abuser {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a := &abuser{cmd: exec.Command(self, "-test.run=^$")}
	a.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", abuserEnv, mode, count, addr))
	a.cmd.Stderr = os.Stderr
	in, err := a.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.in, a.out = in, bufio.NewReader(out)
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.in.Close()
		a.cmd.Wait()
	})
	return a
}

// line returns the next number that it prints.
func (a *abuser) line(t testing.TB) int {
	t.Helper()
	text, err := a.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the abuser ended: %v", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// stop ends it, and returns the next number that it prints.
func (a *abuser) stop(t testing.TB) int {
	t.Helper()
	a.in.Close()
	return a.line(t)
}

// abuse is its main.
func abuse(spec string) (exit int) {
	var mode, addr string
	var count int
	if _, err := fmt.Sscan(spec, &mode, &count, &addr); err != nil {
		fmt.Fprintln(os.Stderr, spec, err)
		return 2
	}
	over := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	dialer := net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	var greeting []byte
	var certs []tls.Certificate
	switch mode {
	case "member":
		dir := os.Getenv(certEnv)
		cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		certs = append(certs, cert)
	case "storm":
		fmt.Println(storm(dialer, count, addr, over))
		return 0
	case "greet":
		greeting = endless()[:15<<10]
	}
	opened := 0
	for range count {
		c, err := dialer.Dial("tcp", addr)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			break
		}
		defer c.Close()
		opened++
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		switch mode {
		case "stall":
			tls.Client(&firstWrite{Conn: c}, &tls.Config{InsecureSkipVerify: true}).Handshake()
		case "member":
			tls.Client(c, &tls.Config{InsecureSkipVerify: true, Certificates: certs}).Handshake()
		default:
			c.Write(greeting)
		}
	}
	fmt.Println(opened)
	<-over
	return 0
}

// firstWrite is a connection that passes on what is written first, and no more: of a
// handshake, the greeting. All of the answer is read.
type firstWrite struct {
	net.Conn
	done bool
}

func (c *firstWrite) Write(p []byte) (int, error) {
	if c.done {
		return 0, errors.New("enough")
	}
	c.done = true
	return c.Conn.Write(p)
}

// storm has handshakes done without a certificate, count at a time, one after the
// other, until over. It returns how many were begun.
func storm(dialer net.Dialer, count int, addr string, over <-chan struct{}) int {
	var begun atomic.Int64
	var wg sync.WaitGroup
	for range count {
		wg.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				c, err := dialer.Dial("tcp", addr)
				if err != nil {
					continue
				}
				begun.Add(1)
				c.SetDeadline(time.Now().Add(10 * time.Second))
				tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake()
				c.Close()
			}
		})
	}
	wg.Wait()
	return int(begun.Load())
}

// descriptors raises the limit as far as it may, and returns it.
func descriptors(t testing.TB) int {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		t.Fatal(err)
	}
	r.Cur = r.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		t.Logf("raise RLIMIT_NOFILE: %v", err)
	}
	return int(min(r.Cur, 1<<30))
}
