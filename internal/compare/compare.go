package compare

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qs-peer/qs-peer/txlog"
)

// Point is a position of the log, and the digest of all pairs that it made up to
// there.
type Point struct {
	Pos    txlog.Pos
	Digest [32]byte
}

// Statement is what a node says of its copy.
type Statement struct {
	Who     string
	Manager bool
	Writer  bool // of the dataset
	Signed  bool // the writer's signature is under it, whoever passed it on
	Alive   bool // it can be asked
	Point
}

// ErrUnknown means that a node does not know its Point after an entry any more, or
// not yet.
var ErrUnknown = errors.New("it does not know the digest after that entry")

// Copy is this node's.
type Copy interface {
	// Newest returns what it holds now, zero if nothing.
	Newest() Point
	// At returns what it held after an entry, if that is remembered.
	At(seq uint64) (Point, bool)
}

// Fleet is the others, of this node's dataset.
type Fleet interface {
	// Said returns what they said last, one Statement of each member, and the
	// newest that the writer signed.
	Said() []Statement
	// Ask asks one of them for its Point after an entry; ErrUnknown is one error of several.
	Ask(ctx context.Context, who string, seq uint64) (Point, error)
	// Changed returns a channel that is closed at the next change.
	Changed() <-chan struct{}
}

// Options configure a Comparer. Copy and Fleet are required.
type Options struct {
	Copy  Copy
	Fleet Fleet
	// Manager is whether this node publishes, and Writer whether it writes: its copy is
	// never judged by others'.
	Manager, Writer bool
	// Signed is whether the writer signs what it says: then nothing else decides.
	Signed bool
	// Out reports whether this node is out of service. Meanwhile nothing is compared; what
	// differs afterwards is judged anew. Default: it never is.
	Out func() bool
	// Convict is told that this node's copy is wrong. Default: nobody is.
	Convict    func(*DivergedError)
	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // default: none
}

const (
	lookGap   = 250 * time.Millisecond // the least time between two looks
	lookEvery = time.Second            // the most

	// judgeAgain is the least time after which what could not be decided is looked
	// at again.
	judgeAgain = 10 * time.Second
	// maxConvictions is how often in a row this node's copy may be wrong.
	maxConvictions = 3
)

// Comparer compares this node's copy with the others'. Its methods may be called
// concurrently.
type Comparer struct {
	o       Options
	log     *slog.Logger
	metrics metrics

	// These belong to Run.
	sources     map[sourceKey]*source
	wasOut      bool
	convictions int // in a row
	resigned    bool

	mu       sync.Mutex // guards what follows
	heard    map[string]Point
	partings []Parting
}

// New returns a Comparer.
func New(o Options) (*Comparer, error) {
	if o.Copy == nil || o.Fleet == nil {
		return nil, errors.New("compare: a copy and a fleet are required")
	}
	if o.Out == nil {
		o.Out = func() bool { return false }
	}
	if o.Convict == nil {
		o.Convict = func(*DivergedError) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Comparer{o: o, log: o.Logger, sources: map[sourceKey]*source{}, heard: map[string]Point{}}
	c.metrics = newMetrics(o.Registerer, c)
	return c, nil
}

// Run compares until ctx ends.
func (c *Comparer) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	rest := time.NewTicker(lookGap)
	defer rest.Stop()
	for {
		changed := c.o.Fleet.Changed()
		c.look(ctx)
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		select {
		case <-rest.C:
		case <-ctx.Done():
			return
		}
	}
}

// Hear takes what a member said otherwise than in gossip.
func (c *Comparer) Hear(who string, p Point) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard[who] = p
}

// Parting is where another copy differs from this one.
type Parting struct {
	Who            string
	Manager        bool
	Writer, Signed bool // the writer says so, and signed it
	// Entry is the first after which the copies are known to differ. Exact tells that
	// they are known to agree after the one before.
	Entry uint64
	Exact bool
	// Ours and Theirs are of one entry.
	Ours, Theirs Point
	Since        time.Time // this node's clock
}

// History reports whether the copies were made of different entries.
func (p *Parting) History() bool { return p.Ours.Pos != p.Theirs.Pos }

// who names the other side.
func (p *Parting) who() string {
	switch {
	case p.Signed:
		return "the writer's signature"
	case p.Writer:
		return "the writer, " + p.Who + ","
	case p.Manager:
		return "manager " + p.Who
	}
	return p.Who
}

// where names the entry.
func (p *Parting) where() string {
	switch {
	case p.Exact && p.History():
		return fmt.Sprintf("entry %d is another one", p.Entry)
	case p.History():
		return fmt.Sprintf("entry %d is another one, and perhaps one before", p.Entry)
	case p.Exact:
		return fmt.Sprintf("the contents part at entry %d", p.Entry)
	}
	return fmt.Sprintf("the contents part at entry %d or before", p.Entry)
}

// DivergedError means that this node's copy holds other pairs than it should.
type DivergedError struct{ Parting }

func (e *DivergedError) Error() string {
	return fmt.Sprintf("this node's copy differs from what %s says: %s (after entry %d the digest is %.8x…, and should be %.8x…)",
		e.who(), e.where(), e.Ours.Pos.Seq, e.Ours.Digest, e.Theirs.Digest)
}

// StoppedError means that no snapshot may be published, because managers differ.
type StoppedError struct{ Partings []Parting }

func (e *StoppedError) Error() string {
	var b strings.Builder
	b.WriteString("publication is stopped until the managers agree again")
	for _, p := range e.Partings {
		fmt.Fprintf(&b, "; %s differs from this node: %s", p.who(), p.where())
	}
	return b.String()
}

// Partings returns where others differ now, ordered by name.
func (c *Comparer) Partings() []Parting {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.partings)
}

// Stopped returns why this node must not publish: a *StoppedError if another manager
// differs, and nil if none does or this node is no manager.
func (c *Comparer) Stopped() error {
	if !c.o.Manager {
		return nil
	}
	among := slices.DeleteFunc(c.Partings(), func(p Parting) bool { return !p.Manager })
	if len(among) == 0 {
		return nil
	}
	return &StoppedError{among}
}
