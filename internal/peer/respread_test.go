package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/time/rate"

	"github.com/qs-peer/qs-peer/txlog"
)

// respReaderOf reads from text, with all the memory that one caller may have.
func respReaderOf(text string) *respReader {
	return &respReader{Reader: bufio.NewReaderSize(strings.NewReader(text), maxInline), ctx: context.Background(), lease: testLease(), skips: rate.NewLimiter(rate.Inf, 0)}
}

func TestReadRESP(t *testing.T) {
	value := strings.Repeat("v", txlog.MaxValue)
	for _, tt := range []struct {
		name, in string
		want     string // arguments, or what the error says
		bad      bool
	}{
		{"array", "*2\r\n$3\r\nGET\r\n$1\r\na\r\n", `["GET" "a"]`, false},
		{"bytes", "*2\r\n$3\r\nGET\r\n$4\r\n\r\n\x00\xff\r\n", `["GET" "\r\n\x00\xff"]`, false},
		{"empty argument", "*2\r\n$3\r\nSET\r\n$0\r\n\r\n", `["SET" ""]`, false},
		{"inline", "PING  x \r\n", `["PING" "x"]`, false},
		{"inline without CR", "PING\n", `["PING"]`, false},
		{"empty lines and arrays first", "\r\n*0\r\n\r\nPING\r\n", `["PING"]`, false},
		{"the largest value", "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$16777216\r\n" + value + "\r\n", "16777216", false},
		{"quotes", "SET a \"b c\"\r\n", "quotes", true},
		{"spaces only", "  \r\n", "empty inline", true},
		{"no array length", "*\r\n", "array length", true},
		{"negative array length", "*-1\r\n", "array length", true},
		{"huge array", "*1048577\r\n", "array length", true},
		{"no bulk", "*1\r\nPING\r\n", "expected '$'", true},
		{"negative bulk length", "*1\r\n$-1\r\n", "bulk length", true},
		{"bulk length that overflows", "*1\r\n$9223372036854775806\r\nx\r\n", "bulk length", true},
		{"bulk of a gigabyte", "*1\r\n$1073741824\r\n", "bulk length", true},
		{"bulk too long", "*1\r\n$1\r\nabc\r\n", "longer than it said", true},
		{"endless line", strings.Repeat("x", maxInline+1), "a line is longer", true},
		{"cut in a line", "*2\r\n$3", io.ErrUnexpectedEOF.Error(), true},
		{"cut in a bulk", "*2\r\n$3\r\nGE", io.ErrUnexpectedEOF.Error(), true},
		{"cut between", "*2\r\n$3\r\nGET\r\n", io.ErrUnexpectedEOF.Error(), true},
		{"nothing", "", io.EOF.Error(), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := respReaderOf(tt.in).next()
			if tt.bad {
				wantError(t, err, tt.want)
				return
			}
			if err != nil || req.refused != nil {
				t.Fatal(err, req)
			}
			got := fmt.Sprintf("%q", req.args)
			if n := len(req.args[len(req.args)-1]); n > 100 {
				got = fmt.Sprint(n)
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// TestReadRESPTooLong passes the limits: the command is refused, the next one
// is understood.
func TestReadRESPTooLong(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   string
		what string
	}{
		{"value", fmt.Sprintf("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\n%s\r\n", txlog.MaxValue+1, strings.Repeat("v", txlog.MaxValue+1)), "value"},
		{"command", fmt.Sprintf("*6\r\n$4\r\nMSET\r\n%s", strings.Repeat(fmt.Sprintf("$%d\r\n%s\r\n", txlog.MaxValue, strings.Repeat("v", txlog.MaxValue)), 5)), "command"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := respReaderOf(tt.in + "PING\r\n")
			req, err := r.next()
			if err != nil {
				t.Fatal(err)
			}
			limit, ok := errors.AsType[*txlog.LimitError](req.refused)
			if !ok || limit.What != tt.what || len(req.args) != 1 {
				t.Fatalf("got %v and %d arguments", req.refused, len(req.args))
			}
			req, err = r.next()
			if err != nil || string(req.args[0]) != "PING" {
				t.Fatalf("then %v, %v", req, err)
			}
		})
	}
}

// TestReadRESPAnnounced announces much and sends nothing: that must not cost
// memory.
func TestReadRESPAnnounced(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		r := respReaderOf("*1048576\r\n$16777216\r\n")
		if _, err := r.next(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / 100; got > 256<<10 {
		t.Errorf("allocated %d bytes for an announcement", got)
	}
}

// FuzzReadRESP reads requests and gives their memory back: none may be lost, and no
// request have more than one may.
func FuzzReadRESP(f *testing.F) {
	f.Add([]byte("*2\r\n$3\r\nGET\r\n$1\r\na\r\nPING\r\n"))
	f.Add([]byte("*1\r\n$9223372036854775806\r\nx\r\n"))
	f.Add([]byte("*3\r\n$3\r\nSET\r\n$16777217\r\n"))
	f.Add([]byte("*2\r\n$4999\r\n" + strings.Repeat("x", 4999) + "\r\n$16777217\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := respReaderOf(string(in))
		for {
			req, err := r.next()
			if err != nil {
				break
			}
			if len(req.args) == 0 {
				t.Fatal("a request without a command")
			}
			size := int64(0)
			for _, arg := range req.args {
				size += int64(len(arg))
			}
			if req.held != r.lease.n || size > maxRequest || size > req.held+maxInline {
				t.Fatalf("%d bytes of arguments, %d held, %d of the lease", size, req.held, r.lease.n)
			}
			r.lease.give(req.held)
		}
		r.lease.close()
		if n := r.lease.quota.used(); n != 0 {
			t.Errorf("%d bytes of memory were not given back", n)
		}
	})
}
