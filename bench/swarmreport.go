package bench

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"time"
)

// SwarmReport is what Swarm measured. Times are in seconds from the start of the
// first worker's process, copies in sizes of the snapshot.
type SwarmReport struct {
	Workers       int    `json:"workers"`
	Managers      int    `json:"managers"`
	Colos         int    `json:"colos"`
	Rate          int64  `json:"rate"`           // bytes per second, 0 unlimited; here and below
	ManagerRate   int64  `json:"manager_rate"`   //
	Between       int64  `json:"intercolo_rate"` //
	Burst         int    `json:"burst"`          // bytes that an idle link of Rate lets pass at once; 0 without a rate
	Size          int64  `json:"size"`           // of the snapshot, in bytes
	TLS           bool   `json:"tls"`            // mutual, between all nodes
	Dir           string `json:"dir"`            // where the nodes keep their data
	Killed        int    `json:"killed"`
	ManagerKilled bool   `json:"manager_killed"`
	Late          int    `json:"late"`
	Slow          int    `json:"slow"`
	// Least is T* of the workers that the times are about: those that are there
	// from the start, live to the end and are not slow.
	Least   float64      `json:"t_star"`
	Formula string       `json:"t_star_is"`
	Runs    []*SwarmRun  `json:"runs"`
	Without []*SwarmRun  `json:"runs_without_slow,omitempty"`
	Median  SwarmFigures `json:"median"` // of each figure by itself
	Worst   SwarmFigures `json:"worst"`

	Against []*ContenderReport `json:"against,omitempty"`
}

// SwarmRun is one run.
type SwarmRun struct {
	SwarmFigures
	Nodes  []*NodeResult `json:"nodes"`
	Uplink []Sample      `json:"manager_uplink"` // frames that had left the managers
}

// String tells the run in a few words.
func (r *SwarmRun) String() string {
	return outcome(r.Last, r.Ratio, r.EgressPayload, "managers sent")
}

// SwarmFigures are what a run comes to. 0 is where a figure does not apply.
type SwarmFigures struct {
	First   float64 `json:"first"` // when the first worker had every piece verified
	Middle  float64 `json:"median"`
	Last    float64 `json:"last"`
	Ratio   float64 `json:"last_over_t_star,omitempty"`
	Serving float64 `json:"serving"` // when the last one served
	// Egress of the managers, in copies: payload as they count it, what workers
	// verified of it, and frames on their links.
	EgressPayload float64   `json:"egress_payload"`
	EgressUseful  float64   `json:"egress_useful"`
	EgressWire    float64   `json:"egress_wire"`
	Into          []float64 `json:"into_colos"`         // payload that entered each colo, in copies
	IntoWire      []float64 `json:"into_colos_wire"`    // frames
	CPU           float64   `json:"cpu_seconds_per_gb"` // of all processes, per 10^9 bytes delivered
	// Busy is the share of the machine's processors that worked, Others the part of
	// it that was neither managers nor workers: the bench, the kernel on its own
	// account, and whoever else used the machine.
	Busy        float64 `json:"processors_busy"`
	Others      float64 `json:"processors_others"`
	Anon        int64   `json:"peak_anon"` // bytes, of the worst worker
	RSS         int64   `json:"peak_rss"`
	ManagerAnon int64   `json:"manager_peak_anon"`
	ManagerRSS  int64   `json:"manager_peak_rss"`
	Wasted      int64   `json:"wasted"`                        // bytes
	LateRatio   float64 `json:"late_over_f_d,omitempty"`       // the slowest late worker's time against F/d
	SlowLast    float64 `json:"slow_last,omitempty"`           // when the last slow worker had everything
	Delay       float64 `json:"others_over_without,omitempty"` // Last against that of the run without slow workers
}

// NodeResult is one worker of a run.
type NodeResult struct {
	Name           string   `json:"name"`
	Colo           string   `json:"colo"`
	Fate           string   `json:"fate,omitempty"` // "killed", "late", "slow" or none
	Began          float64  `json:"began"`
	Fetched        float64  `json:"fetched,omitempty"`
	Serving        float64  `json:"serving,omitempty"`
	FromManagers   int64    `json:"from_managers"`
	FromOwnColo    int64    `json:"from_own_colo"`
	FromOtherColos int64    `json:"from_other_colos"`
	Wasted         int64    `json:"wasted"`
	Curve          []Sample `json:"curve"`
}

// Sample is a count of bytes at some time.
type Sample struct {
	At   float64 `json:"at"`   // seconds
	Done int64   `json:"done"` // bytes; of a worker, what it had verified
}

const (
	killed = "killed"
	late   = "late"
	slow   = "slow"
)

// fate tells what becomes of a worker.
func (o *SwarmOptions) fate(worker int) string {
	switch {
	case worker >= o.Workers:
		return late
	case o.dies(worker):
		return killed
	case worker >= o.Workers-o.Slow:
		return slow
	}
	return ""
}

func newSwarmReport(o *SwarmOptions, size int64) *SwarmReport {
	least := o.least(size)
	r := &SwarmReport{
		Workers: o.Workers, Managers: o.Managers, Colos: o.Colos,
		Rate: int64(o.Rate), ManagerRate: int64(o.ManagerRate), Between: int64(o.Between), Size: size, TLS: o.TLS, Dir: o.Dir,
		Killed: o.killed(), ManagerKilled: o.KillManager, Late: o.JoinLate, Slow: o.Slow,
		Least: least.Time.Seconds(), Formula: least.Formula,
	}
	if o.Rate > 0 {
		r.Burst = o.Rate.Burst()
	}
	return r
}

// least is T* for those workers that the times are about, as if the others were
// not there.
func (o *SwarmOptions) least(size int64) Bound {
	return o.fluid(size, func(w int) bool { return o.fate(w) == "" }).Least()
}

// result makes up the account of a run.
func (r *round) result(began time.Time, size int64, before, after meters) (*SwarmRun, error) {
	run := &SwarmRun{}
	var fetched []float64
	var cpu time.Duration
	var delivered, fromManagers int64
	into := make([]int64, r.o.Colos)
	seconds := func(t *time.Time) float64 {
		if t == nil {
			return 0
		}
		return t.Sub(began).Seconds()
	}
	for _, w := range r.workers {
		used, err := w.cost()
		if err != nil {
			return nil, fmt.Errorf("read the usage of %s: %w", w.name, err)
		}
		cpu += used
		p := w.progress
		delivered += p.Done
		fromManagers += p.From.Managers.Bytes
		into[r.o.coloOf(w.number)] += p.From.Managers.Bytes + p.From.OtherColos.Bytes
		n := &NodeResult{
			Name: w.name, Colo: w.colo, Fate: r.o.fate(w.number), Began: w.began.Sub(began).Seconds(),
			Fetched: seconds(p.Fetched), Serving: seconds(p.Serving),
			FromManagers: p.From.Managers.Bytes, FromOwnColo: p.From.OwnColo.Bytes, FromOtherColos: p.From.OtherColos.Bytes,
			Wasted: p.Wasted, Curve: w.samples(began),
		}
		run.Nodes = append(run.Nodes, n)
		run.Wasted += p.Wasted
		run.Anon, run.RSS = max(run.Anon, w.mem.anon), max(run.RSS, w.mem.peak)
		switch n.Fate {
		case "":
			fetched = append(fetched, n.Fetched)
			run.Serving = max(run.Serving, n.Serving)
		case slow:
			run.SlowLast = max(run.SlowLast, n.Fetched)
		case late:
			if r.o.Rate > 0 {
				run.LateRatio = max(run.LateRatio, (n.Fetched-n.Began)*float64(r.o.Rate)/float64(size))
			}
		}
	}
	for _, m := range r.managers {
		used, err := m.cost()
		if err != nil {
			return nil, fmt.Errorf("read the usage of %s: %w", m.name, err)
		}
		cpu += used
		run.ManagerAnon, run.ManagerRSS = max(run.ManagerAnon, m.mem.anon), max(run.ManagerRSS, m.mem.peak)
	}
	slices.Sort(fetched)
	run.First, run.Middle, run.Last = fetched[0], median(fetched), fetched[len(fetched)-1]
	if least := r.o.least(size).Time.Seconds(); least > 0 {
		run.Ratio = run.Last / least
	}
	copies := func(bytes int64) float64 { return float64(bytes) / float64(size) }
	run.EgressPayload, run.EgressUseful = copies(after.payload-before.payload), copies(fromManagers)
	run.EgressWire = copies(after.out - before.out)
	for c := range into {
		run.Into = append(run.Into, copies(into[c]))
		run.IntoWire = append(run.IntoWire, copies(after.into[c]-before.into[c]))
	}
	for _, u := range r.uplink {
		run.Uplink = append(run.Uplink, Sample{u.At, u.Done - before.out})
	}
	worked, all := after.worked-before.worked, after.processors-before.processors
	if all > 0 {
		run.Busy = min(1, worked.Seconds()/all.Seconds())
		run.Others = max(0, (worked-cpu).Seconds()/all.Seconds())
	}
	run.CPU = cpu.Seconds() / (float64(delivered) / 1e9)
	return run, nil
}

// samples returns the node's curve by the run's clock, ending at the very moment
// when it had everything.
func (n *swarmNode) samples(began time.Time) []Sample {
	curve := []Sample{{At: n.began.Sub(began).Seconds()}}
	for _, s := range n.curve {
		if n.progress.Fetched != nil && !s.at.Before(*n.progress.Fetched) {
			break
		}
		curve = append(curve, Sample{s.at.Sub(began).Seconds(), s.done})
	}
	if n.progress.Fetched != nil {
		curve = append(curve, Sample{n.progress.Fetched.Sub(began).Seconds(), n.progress.Total})
	}
	return curve
}

// summarise makes up medians and worst values.
func (r *SwarmReport) summarise() {
	for i, without := range r.Without {
		r.Runs[i].Delay = r.Runs[i].Last / without.Last
	}
	figures := make([]SwarmFigures, len(r.Runs))
	for i, run := range r.Runs {
		figures[i] = run.SwarmFigures
	}
	r.Median, r.Worst = combine(figures, median), combine(figures, slices.Max[[]float64])
}

// combine applies f to each figure's values in all runs.
func combine[F any](runs []F, f func(values []float64) float64) (s F) {
	all := reflect.ValueOf(runs)
	of := func(at func(run reflect.Value) float64) float64 {
		values := make([]float64, len(runs))
		for i := range runs {
			values[i] = at(all.Index(i))
		}
		return f(values)
	}
	result := reflect.ValueOf(&s).Elem()
	for i := range result.NumField() {
		switch field := result.Field(i); field.Kind() {
		case reflect.Float64:
			field.SetFloat(of(func(run reflect.Value) float64 { return run.Field(i).Float() }))
		case reflect.Int64:
			field.SetInt(int64(of(func(run reflect.Value) float64 { return float64(run.Field(i).Int()) })))
		case reflect.Slice: // a figure of each colo
			for c := range all.Index(0).Field(i).Len() {
				v := of(func(run reflect.Value) float64 { return run.Field(i).Index(c).Float() })
				field.Set(reflect.Append(field, reflect.ValueOf(v)))
			}
		default:
			panic(fmt.Sprintf("a figure of kind %s", field.Kind()))
		}
	}
	return s
}

// median returns the middle of values, of which there is at least one.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// MedianRun returns the run whose last worker was in the middle of all.
func (r *SwarmReport) MedianRun() *SwarmRun {
	s := slices.SortedFunc(slices.Values(r.Runs), func(a, b *SwarmRun) int { return cmp.Compare(a.Last, b.Last) })
	return s[(len(s)-1)/2]
}
