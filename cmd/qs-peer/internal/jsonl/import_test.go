package jsonl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// txns is a node that takes transactions and remembers them.
type txns struct {
	ops    []string // kind and key
	counts []int    // per transaction
	fail   int      // refuse from this transaction on; 0: never
}

func (n *txns) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body struct{ Ops []struct{ Op, Key string } }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		http.Error(w, `{"error":"`+err.Error()+`"}`, http.StatusBadRequest)
		return
	}
	if n.fail > 0 && len(n.counts)+1 >= n.fail {
		http.Error(w, `{"error":"the disk is full"}`, http.StatusInsufficientStorage)
		return
	}
	for _, op := range body.Ops {
		n.ops = append(n.ops, op.Op+" "+op.Key)
	}
	n.counts = append(n.counts, len(body.Ops))
	fmt.Fprintf(w, `{"seq":%d,"hash":"h"}`, 100+len(n.counts))
}

func importInto(t *testing.T, n *txns, r io.Reader) (Summary, error) {
	t.Helper()
	server := httptest.NewServer(n)
	defer server.Close()
	c, err := client.New(client.Options{Addr: server.URL, Silence: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return Import(context.Background(), c, r, false, nil)
}

func lines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"key":"k%06d","value":"v"}`+"\n", i)
	}
	return b.String()
}

func TestImportKeepsOrderInBatches(t *testing.T) {
	var n txns
	sum, err := importInto(t, &n, strings.NewReader(lines(2*batchOps+5)+"\n"+`{"key":"k000000","delete":true}`))
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(n.counts) != fmt.Sprint([]int{batchOps, batchOps, 6}) {
		t.Errorf("batches of %v", n.counts)
	}
	for i, op := range n.ops[:2*batchOps+5] {
		if op != fmt.Sprintf("put k%06d", i) {
			t.Fatalf("operation %d is %q", i, op)
		}
	}
	if last := n.ops[len(n.ops)-1]; last != "delete k000000" {
		t.Errorf("the last operation is %q", last)
	}
	if want := (Summary{Operations: 2*batchOps + 6, Batches: 3, Line: 2*batchOps + 7, Seq: 103, Hash: "h"}); sum != want {
		t.Errorf("summary %+v, want %+v", sum, want)
	}
}

func TestImportStopsAtAWrongLine(t *testing.T) {
	var n txns
	sum, err := importInto(t, &n, strings.NewReader(lines(batchOps+3)+"wrong\n"+lines(7)))
	var wrong *LineError
	if !errors.As(err, &wrong) || wrong.Line != batchOps+4 {
		t.Fatalf("error %v, want one about line %d", err, batchOps+4)
	}
	if sum.Operations != batchOps+3 || sum.Line != batchOps+3 || len(n.ops) != batchOps+3 {
		t.Errorf("summary %+v and %d operations; want the %d before the wrong line", sum, len(n.ops), batchOps+3)
	}
}

func TestImportStopsWhenTheNodeRefuses(t *testing.T) {
	n := txns{fail: 2}
	sum, err := importInto(t, &n, strings.NewReader(lines(5*batchOps)))
	if err == nil || err.Error() != "the disk is full" {
		t.Fatalf("error %v", err)
	}
	if sum.Operations != batchOps || sum.Line != batchOps {
		t.Errorf("summary %+v, want one batch", sum)
	}
}

func TestImportRefusesEndlessLines(t *testing.T) {
	var n txns
	_, err := importInto(t, &n, io.MultiReader(strings.NewReader(lines(2)), endless{}))
	var wrong *LineError
	if !errors.As(err, &wrong) || wrong.Line != 3 || !strings.Contains(err.Error(), fmt.Sprint(MaxLine)) {
		t.Fatalf("error %v, want one about the length of line 3", err)
	}
	if len(n.ops) != 2 {
		t.Errorf("%d operations, want the 2 before", len(n.ops))
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}
