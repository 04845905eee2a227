package lab

import (
	"net"
	"testing"
	"time"
)

// TestCut checks that what is cut is lost in one direction and comes in the other.
func TestCut(t *testing.T) {
	n := newNetwork(t)
	a, b, c := addHost(t, n, "", Link{}), addHost(t, n, "", Link{}), addHost(t, n, "", Link{})
	arrives := func(from, to *Host) bool {
		t.Helper()
		in, err := to.ListenPacket(t.Context(), net.JoinHostPort(to.Addr().String(), "0"))
		check(t, err)
		defer in.Close()
		out, err := from.Dial(t.Context(), "udp", in.LocalAddr().String())
		check(t, err)
		defer out.Close()
		check(t, in.SetReadDeadline(time.Now().Add(2*time.Second)))
		lost := make(chan struct{})
		go func() { // a word that is not lost comes at once, whatever the machine does besides
			defer close(lost)
			for range 10 {
				_, _ = out.Write([]byte("word"))
				time.Sleep(20 * time.Millisecond)
			}
			_ = in.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		}()
		_, _, err = in.ReadFrom(make([]byte, 10))
		<-lost
		return err == nil
	}
	for _, step := range []struct {
		name        string
		do          func() error
		there, back bool
	}{
		{"at first", func() error { return nil }, true, true},
		{"one way", func() error { return a.Cut(b) }, false, true},
		{"both ways", func() error { return b.Cut(a) }, false, false},
		{"the other way", func() error { return a.Mend(b) }, true, false},
		{"mended", func() error { return b.Mend(a) }, true, true},
	} {
		check(t, step.do())
		if got := arrives(a, b); got != step.there {
			t.Errorf("%s: from a to b: %t", step.name, got)
		}
		if got := arrives(b, a); got != step.back {
			t.Errorf("%s: from b to a: %t", step.name, got)
		}
		if !arrives(a, c) || !arrives(c, b) {
			t.Errorf("%s: others are cut off, too", step.name)
		}
	}
}

// TestSqueeze checks that frames wait for those before them, and no longer than the
// squeeze lasts.
func TestSqueeze(t *testing.T) {
	n := newNetwork(t)
	a, b := addHost(t, n, "", Link{}), addHost(t, n, "", Link{})
	in, err := b.ListenPacket(t.Context(), net.JoinHostPort(b.Addr().String(), "0"))
	check(t, err)
	defer in.Close()
	out, err := a.Dial(t.Context(), "udp", in.LocalAddr().String())
	check(t, err)
	defer out.Close()
	for came := false; !came; { // a link that has just come up may lose the first
		_, err := out.Write([]byte("word"))
		check(t, err)
		check(t, in.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		_, _, err = in.ReadFrom(make([]byte, 10))
		came = err == nil
	}
	train := func() time.Duration {
		t.Helper()
		began := time.Now()
		check(t, in.SetReadDeadline(began.Add(10*time.Second)))
		for range 10 {
			_, err := out.Write(make([]byte, 1000))
			check(t, err)
		}
		for range 10 {
			_, _, err := in.ReadFrom(make([]byte, 2000))
			check(t, err)
		}
		return time.Since(began)
	}
	check(t, a.Squeeze(20_000))
	if took := train(); took < 350*time.Millisecond {
		t.Errorf("10 kB at 20 kB/s came within %s", took)
	}
	check(t, a.Squeeze(0))
	if took := train(); took > 300*time.Millisecond {
		t.Errorf("10 kB without a squeeze took %s", took)
	}
}
