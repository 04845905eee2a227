package edge

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
)

func TestRefusedIsLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(nil)
		err := errors.New("no")
		for range 100 {
			n.Refused("http", trust.WrongRole, "w1", err)
			n.Refused("http", trust.WrongRole, "w2", err)
			n.Refused("resp", trust.WrongRole, "w1", err)
			n.Refused("http", trust.BadSignature, "w1", err)
		}
		if got := strings.Count(n.log.String(), "\n"); got != 4 {
			t.Errorf("%d lines, want 4:\n%s", got, n.log)
		}
		if got := n.metric(t, "qs_edge_refused_total"); got != 400 {
			t.Errorf("%v are counted", got)
		}
		if got := n.metric(t, "qs_edge_refused_total", "http", string(trust.WrongRole)); got != 200 {
			t.Errorf("%v are counted of one listener and reason", got)
		}
		time.Sleep(refusalInterval)
		n.Refused("http", trust.WrongRole, "w1", err)
		if got := n.log.with("who=w1", "listener=http", "reason=wrong_role", "since_last_line=99"); got != 1 {
			t.Errorf("a minute later:\n%s", n.log)
		}
	})
}

func TestRefusalsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(nil)
		const many = 20000
		for i := range many {
			n.Refused("gossip", trust.BadSignature, fmt.Sprint("host", i), nil)
		}
		if got := strings.Count(n.log.String(), "\n"); got != maxRefusals+1 {
			t.Errorf("%d lines, want %d", got, maxRefusals+1)
		}
		if got := n.log.with("who=" + everybodyElse); got != 1 {
			t.Errorf("%d lines of the others, want 1", got)
		}
		if got := len(n.refusals.logged); got > maxRefusals+1 {
			t.Errorf("%d are remembered", got)
		}
		if got := n.metric(t, "qs_edge_refused_total", "gossip"); got != many {
			t.Errorf("%v are counted", got)
		}
		time.Sleep(refusalInterval)
		n.Refused("gossip", trust.BadSignature, "somebody new", nil)
		n.Refused("gossip", trust.BadSignature, "somebody newer", nil)
		if n.log.with("who=others", fmt.Sprint("since_last_line=", many-maxRefusals-1)) != 1 || n.log.with("somebody newer") != 1 {
			t.Errorf("a minute later, of %d lines, the last:\n%s", strings.Count(n.log.String(), "\n"), tail(n.log.String()))
		}
	})
}

func TestRefusalTextIsBounded(t *testing.T) {
	n := newNode(nil)
	n.Refused("http", trust.BadCertificate, "h", errors.New(strings.Repeat("x", 1<<20)+"\n"))
	if got := len(n.log.String()); got > 2*maxRefusalText {
		t.Errorf("a line of %d bytes", got)
	}
}

func tail(s string) string { return s[max(0, len(s)-500):] }
