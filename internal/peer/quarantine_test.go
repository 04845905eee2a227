package peer

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/gossip"
	"github.com/qs-peer/qs-peer/internal/replica"
	"github.com/qs-peer/qs-peer/txlog"
)

// condemn writes down, in a node that is not running, that its store is damaged.
func (n *testNode) condemn(reason string) {
	n.t.Helper()
	if err := newCaseFile(n.o.Data).write(&quarantine{Format: caseFormat, Part: partStore, Reason: reason, Since: time.Now().UTC()}); err != nil {
		n.t.Fatal(err)
	}
}

// TestQuarantine: what was found damaged stays out of service over restarts, on all
// surfaces, until it is made anew, here of what the disk holds.
func TestQuarantine(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	m.putMany("k", 1000)
	m.mint()
	w := startNode(t, "w1", gossip.Worker, m)
	w.caughtUp(m.self().AppliedSeq)
	eventually(t, "the worker has the snapshot", func() bool { return len(w.offers()) == 1 })
	seq := m.put("last", "entry")
	w.caughtUp(seq)
	w.stop()
	m.stop()

	const reason = "page 7 is damaged"
	w.condemn(reason)
	snapshots, away := filepath.Join(w.o.Data, snapshotsDir), filepath.Join(t.TempDir(), "away")
	if err := os.Rename(snapshots, away); err != nil {
		t.Fatal(err)
	}
	w.start() // there is nothing to repair it with
	c := redisClient(t, w)
	for _, path := range []string{"/readyz", kvPath("last"), "/v1/scan"} {
		a := w.get(path)
		var body errorBody
		a.json(t, &body)
		if a.code != http.StatusServiceUnavailable || body.State != string(replica.Quarantined) || !strings.Contains(body.Error, reason) {
			t.Errorf("%s: %d %s", path, a.code, a.body)
		}
	}
	if err := c.Get(context.Background(), "last").Err(); err == nil || !strings.HasPrefix(err.Error(), "LOADING quarantined: "+reason) {
		t.Errorf("GET: %v", err)
	}
	if s := w.self(); s.State != string(replica.Quarantined) || !strings.Contains(s.Error, reason) {
		t.Errorf("status: %+v", s)
	}
	w.stop()

	if err := errors.Join(os.RemoveAll(snapshots), os.Rename(away, snapshots)); err != nil {
		t.Fatal(err)
	}
	m.start()
	w.o.Join = []string{m.p.Addrs().Gossip}
	w.start()
	w.caughtUp(seq)
	wantSame(t, m, w)
	if got := w.metric(`qs_repairs_total{kind="store_local",result="ok"}`); got != "1" {
		t.Errorf("%s local repairs", got)
	}
	if got := w.metric(`qs_repair_bytes_fetched_total{kind="store_local"}`); got != "0" {
		t.Errorf("%s bytes fetched for a local repair", got)
	}
	if s := w.self(); s.BytesFromManagers+s.BytesFromWorkers != 0 {
		t.Errorf("%d bytes of snapshots were fetched", s.BytesFromManagers+s.BytesFromWorkers)
	}
	if _, err := os.Stat(filepath.Join(w.o.Data, quarantineName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the case is still open: %v", err)
	}
	if cases, _ := filepath.Glob(filepath.Join(w.o.Data, evidenceDir, casePrefix+"*")); len(cases) != 1 {
		t.Errorf("evidence: %q", cases)
	}

	// A file that LMDB can not even open: the node starts, and mends itself.
	w.stop()
	edit(t, oneFile(t, filepath.Join(w.o.Data, storeDir), "data.mdb"), func(b []byte) []byte { return b[:len(b)/2] })
	w.start()
	w.caughtUp(seq)
	wantSame(t, m, w)
	if s := w.self(); s.BytesFromManagers+s.BytesFromWorkers != 0 {
		t.Errorf("%d bytes of snapshots were fetched", s.BytesFromManagers+s.BytesFromWorkers)
	}

	// The writer does not: it stops, and says what to do. Here its log is damaged while
	// it runs, in front of what it appends to.
	edit(t, oneFile(t, filepath.Join(m.o.Data, logDir), ".log"), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	if a := m.do(http.MethodPost, "/v1/scrub?part=log&rate=0", nil); a.code != http.StatusOK || !strings.Contains(a.body, `"sound":false`) {
		t.Errorf("scrub: %d %s", a.code, a.body)
	}
	if a := m.do(http.MethodPut, kvPath("one"), strings.NewReader("more")); a.code != http.StatusServiceUnavailable || !strings.Contains(a.body, "qs-peer restore") {
		t.Errorf("a write: %d %s", a.code, a.body)
	}
	if a := m.get(kvPath("last")); a.code != http.StatusOK {
		t.Errorf("a read: %d %s", a.code, a.body)
	}
	m.stop()
	m.condemn(reason)
	err := m.startError()
	wantError(t, err, "writer", reason, "qs-peer restore --data "+m.o.Data)
	if strings.Contains(err.Error(), "ask another") {
		t.Errorf("there is nobody else to ask: %v", err)
	}
}

// TestQuarantinedWriterNamesTheCommand: others mend themselves, or there is somebody else
// to ask; for a writer there is neither.
func TestQuarantinedWriterNamesTheCommand(t *testing.T) {
	for _, writer := range []bool{false, true} {
		var logged strings.Builder
		i, err := openInfirmary(t.TempDir(), slog.New(slog.NewTextHandler(&logged, nil)), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		i.writer = writer
		i.report(finding{Part: partStore, Err: errors.New("page 7 is damaged")})
		if text := i.halt().Error(); strings.Contains(text, "qs-peer restore") != writer || !strings.HasPrefix(text, "quarantined: page 7 is damaged") {
			t.Errorf("writer %t: %s", writer, text)
		}
		if strings.Contains(logged.String(), "qs-peer restore") != writer {
			t.Errorf("writer %t: the log says %s", writer, logged.String())
		}
	}
}

// TestUnderWayWhenDamageIsFound: a write that is in the log when its writer finds itself
// damaged is neither refused nor an error of the server's.
func TestUnderWayWhenDamageIsFound(t *testing.T) {
	log, err := txlog.Open(t.TempDir(), txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if _, err := log.Create(txlog.DatasetID{1}); err != nil {
		t.Fatal(err)
	}
	var halt error
	w := &writer{
		node: &node{id: identity{Writer: true}}, log: log, halt: func() error { return halt }, stuck: func() error { return nil },
		applied: func(context.Context, uint64) error {
			halt = &damagedLogError{errors.New("page 7 is damaged")}
			return replica.ErrStopped
		},
	}
	_, err = w.write(t.Context(), []txlog.Op{{Kind: txlog.Put, Key: []byte("k")}})
	wantError(t, err, "entry 2 is written", "look for it before you write it again", "qs-peer restore")
	if code := statusCode(err); code != http.StatusServiceUnavailable {
		t.Errorf("status %d", code)
	}
	if text := respMessage(err); strings.HasPrefix(text, "READONLY") { // which is said of what was not written
		t.Error(text)
	}
	if _, err = w.write(t.Context(), nil); !is[*damagedLogError](err) {
		t.Errorf("the next one: %v", err)
	}
}

// TestDamageIsRemembered: a writer whose log was found damaged where an open does not
// read it does not start again until it is restored.
func TestDamageIsRemembered(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	for range 100 {
		m.put("key", string(make([]byte, 700)))
	}
	last := m.put("last", "entry")
	w := startNode(t, "w1", gossip.Worker, m)
	w.caughtUp(last)
	m.stop()
	paths := resegment(t, filepath.Join(m.o.Data, logDir))
	edit(t, paths[2], func(b []byte) []byte { b[200] ^= 1; return b })

	m.o.Join = []string{w.p.Addrs().Gossip}
	m.start() // nobody knows yet
	if a := m.do(http.MethodPost, "/v1/scrub?part=log&rate=0", nil); a.code != http.StatusOK || !strings.Contains(a.body, `"sound":false`) {
		t.Errorf("scrub: %d %s", a.code, a.body)
	}
	if a := m.do(http.MethodPut, kvPath("one"), strings.NewReader("more")); a.code != http.StatusServiceUnavailable || !strings.Contains(a.body, "qs-peer restore") {
		t.Errorf("a write: %d %s", a.code, a.body)
	}
	if a := m.get(kvPath("last")); a.code != http.StatusOK {
		t.Errorf("a read: %d %s", a.code, a.body)
	}
	m.stop()
	for range 2 {
		wantError(t, m.startError(), "writer", filepath.Base(paths[2]), "is damaged", "qs-peer restore --data "+m.o.Data)
	}

	r, err := Restore(t.Context(), RestoreOptions{Options: m.o, From: "w1"})
	if err != nil || r.Head.Seq != last || r.Lost != 0 {
		t.Fatalf("restored %+v, %v", r, err)
	}
	if _, err := os.Stat(filepath.Join(m.o.Data, r.Aside, quarantineName)); err != nil {
		t.Errorf("the case is not with what was damaged: %v", err)
	}
	m.start()
	w.caughtUp(m.put("one", "more"))
	wantSame(t, m, w)
}

// TestWriterLearnsOfItsDamage: whoever reads the writer's log, the writer learns of what
// is damaged there, and counts each place once.
func TestWriterLearnsOfItsDamage(t *testing.T) {
	m := startNode(t, "m1", gossip.Manager)
	for range 100 {
		m.put("key", string(make([]byte, 700)))
	}
	m.stop()
	paths := resegment(t, filepath.Join(m.o.Data, logDir))
	flip := func(b []byte) []byte { b[200] ^= 1; return b }
	edit(t, paths[2], flip)
	m.start() // nobody knows yet
	m.put("one", "more")
	startNode(t, "w1", gossip.Worker, m)
	eventually(t, "the writer takes no more writes", func() bool {
		a := m.do(http.MethodPut, kvPath("one"), strings.NewReader("more"))
		return a.code == http.StatusServiceUnavailable && strings.Contains(a.body, filepath.Base(paths[2]))
	})
	found := func(want string) {
		t.Helper()
		if a := m.do(http.MethodPost, "/v1/scrub?part=log&rate=0", nil); a.code != http.StatusOK || !strings.Contains(a.body, `"sound":false`) {
			t.Errorf("scrub: %d %s", a.code, a.body)
		}
		if got := m.metric(`qs_damage_findings_total{part="log"}`); got != want {
			t.Errorf("%s findings, want %s", got, want)
		}
		if got := m.metric(`qs_repairs_total{kind="log_segment",result="ok"}`); got != "0" {
			t.Errorf("%s repairs of what is not repaired", got)
		}
	}
	found("1")
	edit(t, paths[5], flip)
	found("2")
}

// TestPlacesCountOnce: what stays damaged is reported whenever it is met, and counts once,
// until it was mended.
func TestPlacesCountOnce(t *testing.T) {
	reg := prometheus.NewRegistry()
	in, err := openInfirmary(t.TempDir(), slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	at := func(place string, stays bool) finding {
		return finding{Part: partLog, Err: errors.New("damaged"), Place: place, Stays: stays}
	}
	for _, f := range []finding{at("1", true), at("2", true), at("1", true), at("1", false), at("1", false), at("2", true)} {
		in.report(f)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "qs_damage_findings_total" && m.GetLabel()[0].GetValue() == "log" && m.GetCounter().GetValue() != 3 {
				t.Errorf("%v findings", m.GetCounter().GetValue())
			}
		}
	}
}
