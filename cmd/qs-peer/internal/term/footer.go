package term

import (
	"io"
	"sync"
)

// Footer keeps one line below what is written to a terminal through it. Its
// methods may be called concurrently.
type Footer struct {
	out io.Writer

	mu   sync.Mutex // guards line and the order on out
	line string     // shown; empty: none
}

// NewFooter returns a footer of the terminal w, empty at first.
func NewFooter(w io.Writer) *Footer { return &Footer{out: w} }

const eraseLine = "\r\x1b[K"

// Write writes whole lines above the footer.
func (f *Footer) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.line == "" {
		return f.out.Write(p)
	}
	// At once, so that nothing flickers.
	if _, err := io.WriteString(f.out, eraseLine+string(p)+f.line); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Set replaces the footer, which should be narrower than the terminal; an empty
// one goes away.
func (f *Footer) Set(line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if line == f.line {
		return
	}
	f.line = line
	// Nobody is left to tell of an error: it is the terminal that is gone.
	_, _ = io.WriteString(f.out, eraseLine+line)
}
