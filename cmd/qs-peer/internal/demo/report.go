package demo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
)

// Report is what a demo measured. Sizes are in bytes.
type Report struct {
	Matched  bool     `json:"matched"` // every node holds the same data
	Seconds  float64  `json:"seconds"`
	Dir      string   `json:"dir"`
	TLS      bool     `json:"tls"` // mutual, on every channel
	Keys     int      `json:"keys"`
	Workers  int      `json:"workers"`
	Import   Import   `json:"import"`
	Snapshot Snapshot `json:"snapshot"`
	Rebuild  Rebuild  `json:"rebuild"` // of all workers from nothing
	Killed   Build    `json:"killed"`  // the worker that was killed, wiped and rebuilt
	Restart  Restart  `json:"restart"` // of the manager
	Writes   Writes   `json:"writes"`  // that arrived meanwhile
	Settle   Settle   `json:"settle"`  // of all nodes at the last write
	Members  []Member `json:"members"` // in the end
	// Commands run what was kept again, and look at it.
	Commands []string `json:"commands,omitempty"`
}

// Import is the loading of the data.
type Import struct {
	Pairs   uint64  `json:"pairs"`
	Seconds float64 `json:"seconds"`
}

// Snapshot is what was published.
type Snapshot struct {
	client.Snapshot
	Seconds float64 `json:"seconds"`
}

// Build is one worker's way from nothing to serving.
type Build struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Sources
}

// Sources says where snapshot payload came from. A demo has one colo, and so
// nothing from others.
type Sources struct {
	BytesFromManagers   int64 `json:"bytes_from_managers"`
	BytesFromWorkers    int64 `json:"bytes_from_workers"` // own and other colos
	BytesFromOwnColo    int64 `json:"bytes_from_own_colo"`
	BytesFromOtherColos int64 `json:"bytes_from_other_colos"`
}

func sourcesOf(m client.Member) Sources {
	return Sources{m.BytesFromManagers, m.BytesFromWorkers, m.BytesFromOwnColo, m.BytesFromOtherColos}
}

func (s *Sources) add(o Sources) {
	s.BytesFromManagers += o.BytesFromManagers
	s.BytesFromWorkers += o.BytesFromWorkers
	s.BytesFromOwnColo += o.BytesFromOwnColo
	s.BytesFromOtherColos += o.BytesFromOtherColos
}

// Rebuild is all workers' way from nothing to serving.
type Rebuild struct {
	Seconds float64 `json:"seconds"`
	Sources
	ManagerCopies float64 `json:"manager_copies"` // bytes from managers, in sizes of the snapshot
	Builds        []Build `json:"builds"`
}

// Restart is a stop and a start on the same directory.
type Restart struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// Writes are those that arrived during the demo.
type Writes struct {
	Acknowledged int `json:"acknowledged"`
	Retries      int `json:"retries"` // while the manager was away
}

// Settle is the wait until every node had applied the last write.
type Settle struct {
	Seq     uint64  `json:"seq"`
	Seconds float64 `json:"seconds"`
}

// Member is a node in the end.
type Member struct {
	Name    string  `json:"name"`
	Role    string  `json:"role"`
	State   string  `json:"state"`
	Seconds float64 `json:"seconds,omitempty"` // of a worker, from its last start to serving
	Sources
	Seq          uint64 `json:"seq"`
	Hash         string `json:"hash"`
	ExportPairs  uint64 `json:"export_pairs"`
	ExportBytes  int64  `json:"export_bytes"`
	ExportSHA256 string `json:"export_sha256"`
}

// compare asks every node for all it holds.
func (s *show) compare(ctx context.Context) error {
	st := s.begin(ctx, "All nodes are exported and compared")
	defer st.spinner.Done()
	names := append([]string{managerName}, s.workers...)
	s.report.Members = make([]Member, len(names))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i, name := range names {
		g.Go(func() (err error) {
			s.report.Members[i], err = s.member(ctx, name)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	first := s.report.Members[0]
	s.report.Matched = true
	for _, m := range s.report.Members {
		if m.Seq != first.Seq || m.Hash != first.Hash || m.ExportSHA256 != first.ExportSHA256 || m.State != "serving" {
			s.report.Matched = false
		}
	}
	st.end("Everything that every node holds is exported and compared")
	return nil
}

// member describes a node by its own status and its export.
func (s *show) member(ctx context.Context, name string) (Member, error) {
	c, err := s.client(s.fleet.Node(name))
	if err != nil {
		return Member{}, err
	}
	defer c.Close()
	status, _, err := c.Status(ctx)
	if err != nil {
		return Member{}, fmt.Errorf("%s: %w", name, err)
	}
	me, _ := status.Me()
	m := Member{Name: name, Role: me.Role, State: me.State, Sources: sourcesOf(me), Seq: me.AppliedSeq, Hash: me.AppliedHash}
	for _, b := range slices.Concat(s.report.Rebuild.Builds, []Build{s.report.Killed}) { // its second life last
		if b.Name == name {
			m.Seconds = b.Seconds
		}
	}
	body, err := c.Scan(ctx, client.Range{})
	if err != nil {
		return Member{}, fmt.Errorf("export of %s: %w", name, err)
	}
	defer body.Close()
	sum := sha256.New()
	if m.ExportBytes, err = io.Copy(io.MultiWriter(sum, (*lineCount)(&m.ExportPairs)), body); err != nil {
		return Member{}, fmt.Errorf("export of %s: %w", name, err)
	}
	m.ExportSHA256 = hex.EncodeToString(sum.Sum(nil))
	return m, nil
}

type lineCount uint64

func (n *lineCount) Write(p []byte) (int, error) {
	*n += lineCount(strings.Count(string(p), "\n"))
	return len(p), nil
}

// Print prints the table.
func (r *Report) Print(w io.Writer) error {
	t := term.Table{Header: []string{"NAME", "STATE", ">BUILT IN", ">BY MANAGER", ">BY OWN COLO", ">ENTRY", "HASH", "EXPORT"}}
	for _, m := range r.Members {
		built := "-"
		if m.Seconds > 0 {
			built = fmt.Sprintf("%.1fs", m.Seconds)
		}
		style := term.Green
		if m.State != "serving" {
			style = term.Red
		}
		t.Rows = append(t.Rows, []term.Cell{
			{Text: m.Name}, {Text: m.State, Style: style}, {Text: built},
			{Text: term.Bytes(m.BytesFromManagers)}, {Text: term.Bytes(m.BytesFromOwnColo)},
			{Text: term.Count(m.Seq)}, {Text: short(m.Hash)}, {Text: short(m.ExportSHA256)},
		})
	}
	colours := term.Colours(w)
	var b strings.Builder
	b.WriteByte('\n')
	for _, line := range t.Lines(colours, 0) {
		b.WriteString(line + "\n")
	}
	verdict, style := "The nodes DO NOT hold the same data", term.Red
	if r.Matched {
		verdict, style = "All nodes hold the same data", term.Green
	}
	if colours {
		verdict = style.In(verdict)
	}
	first := r.Members[0]
	fmt.Fprintf(&b, "\n%s: %s, %s of export. %.1fs in all.\n", verdict,
		term.Plural(first.ExportPairs, "pair"), term.Bytes(first.ExportBytes), r.Seconds)
	switch {
	case len(r.Commands) > 0:
		b.WriteString("\nTo go on from here:\n")
		for _, c := range r.Commands {
			b.WriteString("  " + c + "\n")
		}
	case r.TLS:
		b.WriteString("\nEvery connection was mutual TLS 1.3, by an authority made for the demo. To keep its certificates, the data, and\n" +
			"the commands to go on with them: qs-peer demo --keep. For certificates of your own: qs-peer ca --help\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// short is the beginning of a hash, enough for the eye.
func short(hash string) string { return hash[:min(8, len(hash))] }
