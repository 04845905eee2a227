package heads

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qs-peer/qs-peer/txlog"
)

// upTo is a writer, or a relay, that sends its whole history, and then a head.
func upTo(k *keys, name string, h []txlog.Entry) *upstream {
	return honest(k, name, h, len(h))
}

func TestForks(t *testing.T) {
	h := history(300, 1<<30, "")
	other := history(300, 150, "restored")
	sign := func(k *keys, of []txlog.Entry, seq int) []byte {
		return k.sign("m1", Head{Dataset: dataset, Pos: at(of, seq), Time: time.Unix(7000, 0).UTC()}).Note
	}
	writer := func(up *upstream) *upstream {
		up.writer = true
		return up
	}
	for _, c := range []struct {
		name string
		have int                                          // entries that we have of h
		from []int                                        // heads by which they were covered
		then func(k *keys, f *follower) (*upstream, bool) // who proves the fork; false: it takes no stream
		seq  uint64                                       // where they differ, as far as is known
	}{
		{"a writer that was restored and went on beyond us", 200, []int{100, 200}, func(k *keys, f *follower) (*upstream, bool) {
			return writer(upTo(k, "m1", other[:250])), true
		}, 150},
		{"a writer that was restored and is behind us", 200, []int{100, 200}, func(k *keys, f *follower) (*upstream, bool) {
			return writer(upTo(k, "m1", other[:180])), true
		}, 150},
		{"a relay that follows the other writer", 200, []int{100, 120, 160, 200}, func(k *keys, f *follower) (*upstream, bool) {
			return honest(k, "relay", other, 170, 240, 300), true
		}, 150},
		{"a relay that holds us level but has a head of the other history", 200, []int{200}, func(k *keys, f *follower) (*upstream, bool) {
			up := &upstream{name: "relay", holds: h}
			up.script = func(txlog.Pos) []part { return []part{{notes: [][]byte{sign(k, other, 180)}}} }
			return up, true
		}, 180},
		{"a head of our own position", 200, []int{200}, func(k *keys, f *follower) (*upstream, bool) {
			up := &upstream{name: "relay", holds: h}
			up.script = func(txlog.Pos) []part { return []part{{notes: [][]byte{sign(k, other, 200)}}} }
			return up, true
		}, 200},
		{"heads ahead that do not agree", 100, []int{100}, func(k *keys, f *follower) (*upstream, bool) {
			// One relay shows a head of the other history, and has no entries.
			liar := &upstream{name: "relay", holds: h}
			liar.script = func(txlog.Pos) []part {
				return []part{{notes: [][]byte{sign(k, other, 180)}}, {entries: h[100:190]}}
			}
			if err := f.follow(liar, at(h, 190)); err == nil {
				t.Error("followed it")
			}
			return upTo(k, "good", h[:200]), true
		}, 180},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKeys(t, "m1")
				f := newFollower(t, k.trusted("m1"), nil)
				if err := f.follow(honest(k, "m1", h[:c.have], c.from...), at(h, c.have)); err != nil {
					t.Fatal(err)
				}
				for _, seq := range c.from {
					f.book.Keep(k.sign("m1", Head{Dataset: dataset, Pos: at(h, seq), Time: time.Unix(1, 0).UTC()}))
				}
				up, _ := c.then(k, f)
				before := f.log.Head()
				err := f.follow(up, at(other, len(other)))
				var fork *ForkError
				if !errors.As(err, &fork) {
					t.Fatalf("error %v, want a fork", err)
				}
				if fork.Seq != c.seq || fork.Dataset != dataset {
					t.Errorf("found at entry %d, want %d", fork.Seq, c.seq)
				}
				if f.log.Head() != before {
					t.Errorf("the log went on to %v", f.log.Head())
				}
				if f.metric("qs_log_forks_total", "") != 1 || f.metric("qs_log_forked", "") != 1 {
					t.Error("the fork is not counted")
				}
				forks := slices.DeleteFunc(slices.Clone(f.alarms.list), func(s string) bool { return !strings.Contains(s, "forked") })
				if len(forks) != 1 {
					t.Errorf("logged: %q", f.alarms.list)
				}
				proves(t, k, fork.Path)

				// It stays so, whoever is asked, and after a restart.
				for range 2 {
					if err := f.follow(upTo(k, "good", h), at(h, 300)); !errors.As(err, &fork) {
						t.Errorf("afterwards: %v", err)
					}
					f.restart()
				}
				if err := os.RemoveAll(filepath.Dir(fork.Path)); err != nil {
					t.Fatal(err)
				}
				f.restart()
				if err := f.follow(upTo(k, "good", h), at(h, 300)); err != nil {
					t.Errorf("after an operator decided: %v", err)
				}
			})
		})
	}
}

// proves checks that a file of evidence proves a fork, and that it does not when
// anything in it is changed.
func proves(t *testing.T, k *keys, path string) {
	t.Helper()
	e, err := ReadEvidence(path)
	if err != nil {
		t.Fatal(err)
	}
	trusted := k.trusted("m1")
	if err := e.Check(trusted); err != nil {
		t.Errorf("the evidence proves nothing: %v", err)
	}
	for name, spoil := range map[string]func(e *Evidence){
		"dataset":       func(e *Evidence) { e.Dataset = txlog.DatasetID{9}.String() },
		"no dataset":    func(e *Evidence) { e.Dataset = "x" },
		"seq":           func(e *Evidence) { e.Seq++ },
		"our hash":      func(e *Evidence) { e.Ours.Hash = txlog.Hash{1}.String() },
		"their hash":    func(e *Evidence) { e.Theirs.Hash = txlog.Hash{1}.String() },
		"the same hash": func(e *Evidence) { e.Theirs = e.Ours },
		"no hash":       func(e *Evidence) { e.Ours.Hash = "" },
		"note":          func(e *Evidence) { e.Theirs.Note = strings.Replace(e.Theirs.Note, "pos ", "pos 1", 1) },
		"unsigned":      func(e *Evidence) { e.Ours.Note = strings.SplitAfter(e.Ours.Note, "\n\n")[0] },
		"a frame":       func(e *Evidence) { spoilFrame(&e.Ours, &e.Theirs, func(f [][]byte) [][]byte { f[0][40]++; return f }) },
		"a frame less":  func(e *Evidence) { spoilFrame(&e.Ours, &e.Theirs, func(f [][]byte) [][]byte { return f[1:] }) },
		"the last less": func(e *Evidence) { spoilFrame(&e.Ours, &e.Theirs, func(f [][]byte) [][]byte { return f[:len(f)-1] }) },
		"a frame twice": func(e *Evidence) {
			spoilFrame(&e.Ours, &e.Theirs, func(f [][]byte) [][]byte { return append(f, f[0]) })
		},
		"not of the key": func(e *Evidence) { e.Theirs.Note = strings.Replace(e.Theirs.Note, "— m1 ", "— m2 ", 1) },
	} {
		again, err := ReadEvidence(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, " less") && len(again.Ours.Frames)+len(again.Theirs.Frames) < 3 {
			continue // the note tells the entry's hash itself
		}
		before, _ := json.Marshal(again)
		spoil(again)
		if after, _ := json.Marshal(again); string(after) == string(before) {
			t.Errorf("%s: nothing was changed", name)
		}
		if err := again.Check(trusted); err == nil {
			t.Errorf("%s: it still proves a fork", name)
		}
	}
}

// spoilFrame changes the frames of the side that has more.
func spoilFrame(a, b *Side, change func([][]byte) [][]byte) {
	if len(a.Frames) < len(b.Frames) {
		a = b
	}
	a.Frames = change(a.Frames)
}

// What is no fork must not stop a node.
func TestNoForks(t *testing.T) {
	h := history(300, 1<<30, "")
	other := history(300, 150, "other")
	for _, c := range []struct {
		name    string
		have    []txlog.Entry
		covered int // up to there
		up      func(k *keys) *upstream
		check   func(t *testing.T, err error)
	}{
		{"an upstream that diverged, and has no head to prove it", h[:200], 200, func(k *keys) *upstream {
			up := &upstream{name: "diverged", holds: other}
			up.script = func(after txlog.Pos) []part {
				return []part{{notes: [][]byte{k.sign("m1", Head{Dataset: dataset, Pos: at(h, 140), Time: time.Unix(1, 0).UTC()}).Note}}, {entries: other[after.Seq:]}}
			}
			return up
		}, func(t *testing.T, err error) { wantFault(t, err, Unproven) }},
		{"an upstream that says so and no more", h[:200], 200, func(k *keys) *upstream {
			return &upstream{name: "liar", refuses: &txlog.DivergedError{Seq: 200, Have: txlog.Hash{1}, Want: at(h, 200).Hash}}
		}, func(t *testing.T, err error) { wantFault(t, err, Unproven) }},
		{"an upstream that says so, and holds the same", h[:200], 200, func(k *keys) *upstream {
			up := honest(k, "liar", h[:199], 199)
			up.holds = slices.Clone(h[:199])
			up.holds = append(up.holds, other[199])
			return up
		}, func(t *testing.T, err error) { wantFault(t, err, Unproven) }},
		{"our own tail is wrong, and nobody signed it", other[:200], 140, func(k *keys) *upstream {
			return honest(k, "m1", h, 250, 300)
		}, func(t *testing.T, err error) {
			if wrong, ok := errors.AsType[*ContradictedError](err); !ok || wrong.Seq != 150 || wrong.Have != at(other, 150).Hash || wrong.Want != at(h, 150).Hash {
				t.Errorf("error %v", err)
			}
		}},
		{"our own tail is wrong, and a head of its end comes", other[:200], 140, func(k *keys) *upstream {
			up := &upstream{name: "relay", holds: other}
			up.script = func(txlog.Pos) []part {
				return []part{{notes: [][]byte{k.sign("m1", Head{Dataset: dataset, Pos: at(h, 200), Time: time.Unix(1, 0).UTC()}).Note}}}
			}
			return up
		}, func(t *testing.T, err error) {
			if wrong, ok := errors.AsType[*ContradictedError](err); !ok || wrong.Seq != 200 {
				t.Errorf("error %v", err)
			}
		}},
		{"nobody can prove anything, as without signatures", other[:200], 0, func(k *keys) *upstream {
			return &upstream{name: "m1", holds: h, first: 150, script: func(txlog.Pos) []part { return nil }}
		}, func(t *testing.T, err error) {
			if _, ok := errors.AsType[*txlog.DivergedError](err); !ok {
				t.Errorf("error %v", err)
			}
		}},
		{"the writer is behind, and holds the same", h[:200], 200, func(k *keys) *upstream {
			up := honest(k, "m1", h[:180], 180)
			up.writer = true
			return up
		}, func(t *testing.T, err error) {
			if d, ok := errors.AsType[*txlog.DivergedError](err); !ok || !d.Have.IsZero() {
				t.Errorf("error %v", err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKeys(t, "m1", "stranger")
				f := newFollower(t, k.trusted("m1"), c.have)
				if c.covered > 0 {
					f.book.Keep(k.sign("m1", Head{Dataset: dataset, Pos: at(c.have, min(c.covered, 100)), Time: time.Unix(1, 0).UTC()}))
					f.guard.redeem(k.sign("m1", Head{Dataset: dataset, Pos: at(c.have, c.covered), Time: time.Unix(2, 0).UTC()}), 0)
				}
				began := time.Now()
				err := f.follow(c.up(k), at(h, 300))
				c.check(t, err)
				if took := time.Since(began); took > inquireWithin {
					t.Errorf("it took %v", took)
				}
				if f.guard.Halt() != nil || f.metric("qs_log_forked", "") != 0 {
					t.Error("took that for a fork")
				}
				if f.log.Head() != at(c.have, len(c.have)) {
					t.Errorf("the log ends at %v", f.log.Head())
				}
			})
		})
	}
}

func wantFault(t *testing.T, err error, want Reason) {
	t.Helper()
	if fault, ok := errors.AsType[*FaultError](err); !ok || fault.Reason != want {
		t.Errorf("error %v, want a fault: %s", err, want)
	}
}

// Evidence that can not be read stops a node, too: somebody has to look at it.
func TestUnreadableEvidence(t *testing.T) {
	k := newKeys(t, "m1")
	f := newFollower(t, k.trusted("m1"), history(10, 1<<30, ""))
	dir := filepath.Join(f.dir, "evidence")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	f.restart()
	if f.guard.Halt() != nil {
		t.Error("any file counts as evidence")
	}
	if err := os.WriteFile(filepath.Join(dir, "fork-1.json"), []byte("{"), 0o640); err != nil {
		t.Fatal(err)
	}
	f.restart()
	if f.guard.Halt() == nil {
		t.Error("unreadable evidence does not count")
	}
}

// However often a fork is found, so many files are kept.
func TestEvidenceIsBounded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "evidence")
	for i := range 3 * maxEvidence {
		e := &Evidence{Format: evidenceFormat, Seq: uint64(i), Ours: Side{Hash: "aa"}, Theirs: Side{Hash: "bb"}}
		for range 2 {
			if _, err := e.save(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	paths, err := listEvidence(dir)
	if err != nil || len(paths) != maxEvidence {
		t.Errorf("%d files, %v", len(paths), err)
	}
}

// A side has room for so much.
func TestSidesAreBounded(t *testing.T) {
	h := padded(20, 2<<20, "")
	s := newSide(h[1].Hash, Signed{}, h[1:])
	size := 0
	for _, f := range s.Frames {
		size += len(f)
	}
	if s.Complete || size > maxFrames || len(s.Frames) == 0 {
		t.Errorf("%d frames, %d bytes, complete %v", len(s.Frames), size, s.Complete)
	}
}
