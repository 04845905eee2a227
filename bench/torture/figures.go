package torture

import "sync"

// figures are what a campaign counts besides faults.
type figures struct {
	mu     sync.Mutex // guards what follows
	values map[string]float64
	once   map[any]bool
}

func (f *figures) change(name string, by func(old float64) float64) {
	if f.values == nil {
		f.values = map[string]float64{}
	}
	f.values[name] = by(f.values[name])
}

func (f *figures) add(name string, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.change(name, func(old float64) float64 { return old + float64(n) })
}

func (f *figures) most(name string, v float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.change(name, func(old float64) float64 { return max(old, v) })
}

// set counts a thing once.
func (f *figures) set(name string, thing any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.once == nil {
		f.once = map[any]bool{}
	}
	if !f.once[thing] {
		f.once[thing] = true
		f.change(name, func(old float64) float64 { return old + 1 })
	}
}
