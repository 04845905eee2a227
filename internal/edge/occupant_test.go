package edge

import (
	"errors"
	"io"
	"testing"

	"github.com/qs-peer/qs-peer/internal/trust"
	"github.com/qs-peer/qs-peer/internal/trust/trusttest"
)

// TestMisnamedAddress: whoever looks for a member at an address where another lives
// backs off, and does not keep others from that one.
func TestMisnamedAddress(t *testing.T) {
	ca := trusttest.New(t)
	ln := listen(t)
	server := New(Options{Credentials: ca.Open(t, trust.RoleManager, "m1")}).Listen(ln, ListenOptions{Name: "peer"})
	defer server.Close()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "x")
			c.Close()
		}
	}()
	e := New(Options{Credentials: ca.Open(t, trust.RoleWorker, "w1")})
	addr := ln.Addr().String()
	want := func(name string) func(trust.Identity) error { return trust.Want(name, trust.NodeRoles()...) }
	held := 0
	for range 50 {
		_, err := e.Dial(t.Context(), addr, want("evil"))
		if err == nil {
			t.Fatal("the manager was taken for evil")
		}
		if b := (*BreakerError)(nil); errors.As(err, &b) {
			held++
		} else if trust.ReasonOf(err) != trust.WrongName {
			t.Fatal(err)
		}
		c, err := e.Dial(t.Context(), addr, want("m1"))
		if err != nil {
			t.Fatalf("who wants the one that is there: %v", err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if held < 40 {
		t.Errorf("%d of 50 attempts were held back", held)
	}
	e.Retry(addr)
	if _, err := e.Dial(t.Context(), addr, want("evil")); trust.ReasonOf(err) != trust.WrongName {
		t.Errorf("after Retry: %v", err)
	}
}
