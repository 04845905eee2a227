package edge

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestForgive(t *testing.T) {
	bs, now := newBreakers(), time.Now()
	refused := errors.New("refused")
	fail := func() {
		if err := bs.allow("a", now); err != nil {
			t.Fatal(err)
		}
		bs.fail("a", now, now.Add(time.Millisecond), refused)
	}
	for range 6 {
		fail()
		now = now.Add(2 * backoffMax)
	}
	fail()
	now = now.Add(2 * backoffBase)
	var held *BreakerError
	if err := bs.allow("a", now); !errors.As(err, &held) || held.Failures != 7 {
		t.Fatalf("after many failures: %v", err)
	}
	bs.forgive("a", now)
	fail()
	now = now.Add(2 * backoffBase)
	if err := bs.allow("a", now); err != nil {
		t.Errorf("the back-off did not begin anew: %v", err)
	}
	for i := range 500 {
		bs.fail(fmt.Sprint("c", i), now, now, refused)
	}
	bs.fail("d", now, now, refused)
	now = now.Add(2 * backoffBase)
	if err := bs.allow("d", now); err == nil {
		t.Error("500 others are before it")
	}
	bs.forgive("d", now)
	if err := bs.allow("d", now); err != nil {
		t.Errorf("it came back: %v", err)
	}
	bs.forgive("b", now) // nothing is known of it
	if n := bs.count(); n != 502 {
		t.Errorf("%v addresses fail", n)
	}
}
