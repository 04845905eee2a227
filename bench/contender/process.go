package contender

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
)

// keptOutput is how much of a process's latest output is kept, in bytes.
const keptOutput = 16 << 10

// process is a program that runs on a host, with all that it starts.
type process struct {
	name   string
	host   *lab.Host
	cmd    *exec.Cmd
	before time.Duration // processor time used when the clock started

	exited chan struct{} // closed when it has ended
	ended  time.Time     // and how; valid then
	err    error

	mu      sync.Mutex // guards what follows
	output  []byte     // the end of what it printed
	changed chan struct{}
}

// start runs a program on a host, in dir.
func (r *race) start(host *lab.Host, dir, program string, args ...string) (*process, error) {
	p := &process{name: fmt.Sprintf("%s on %s", program, host.Addr()), host: host, cmd: exec.Command(program, args...),
		exited: make(chan struct{}), changed: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, p, p
	// Nothing of ours, such as the address of a proxy, is theirs.
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LC_ALL=C.UTF-8"}
	// What it leaves behind may hold its output open.
	p.cmd.WaitDelay = time.Second
	if err := host.StartTree(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	r.processes = append(r.processes, p)
	go func() {
		p.err = p.cmd.Wait()
		p.ended = time.Now()
		close(p.exited)
	}()
	return p, nil
}

// Write takes output.
func (p *process) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.output = append(p.output, text...)
	if extra := len(p.output) - keptOutput; extra > 0 {
		p.output = append(p.output[:0], p.output[extra:]...)
	}
	close(p.changed)
	p.changed = make(chan struct{})
	return len(text), nil
}

// printed returns the end of the output, and what is closed when there is more.
func (p *process) printed() (output []byte, more <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.output), p.changed
}

// says waits until the process has printed text.
func (p *process) says(ctx context.Context, text string) (time.Time, error) {
	for {
		output, more := p.printed()
		if bytes.Contains(output, []byte(text)) {
			return time.Now(), nil
		}
		select {
		case <-more:
		case <-p.exited:
			if output, _ := p.printed(); bytes.Contains(output, []byte(text)) {
				return p.ended, nil
			}
			return time.Time{}, p.failure("ended")
		case <-ctx.Done():
			return time.Time{}, p.late(ctx)
		}
	}
}

// ends waits until the process has ended well.
func (p *process) ends(ctx context.Context) (time.Time, error) {
	select {
	case <-p.exited:
		if p.err != nil {
			return time.Time{}, p.failure("failed")
		}
		return p.ended, nil
	case <-ctx.Done():
		return time.Time{}, p.late(ctx)
	}
}

// late tells what a process had to say that was waited for in vain.
func (p *process) late(ctx context.Context) error {
	return fmt.Errorf("%w: %s was last heard saying:\n%s", context.Cause(ctx), p.name, p.lastWords())
}

// failure tells how a process that has ended did so, and its last words.
func (p *process) failure(what string) error {
	return fmt.Errorf("%s %s (%v), saying:\n%s", p.name, what, p.cmd.ProcessState, p.lastWords())
}

// lastWords returns the last lines of the output.
func (p *process) lastWords() string {
	output, _ := p.printed()
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	const last = 8
	return strings.Join(lines[max(0, len(lines)-last):], "\n")
}

// pollEvery is how often what can not be waited for is asked.
const pollEvery = 20 * time.Millisecond

// until asks, until ready returns nil or the process ends. It returns when that was.
func (p *process) until(ctx context.Context, ready func() error) (time.Time, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return time.Now(), nil
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return time.Time{}, p.failure("ended")
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%w: %s: %w", context.Cause(ctx), p.name, err)
		}
	}
}

// listens waits until the process takes connections at a port of its host's
// loopback.
func (p *process) listens(ctx context.Context, port int) error {
	_, err := p.until(ctx, func() error {
		conn, err := p.host.Dial(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return err
}

// kill ends the process and all that it started, and waits for its end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// used returns the processor time that the process and its children have used.
func (p *process) used() (time.Duration, error) {
	select {
	case <-p.exited:
	default:
		if used, err := treeTime(p.cmd.Process.Pid); err == nil {
			return used, nil
		}
		<-p.exited // meanwhile
	}
	s := p.cmd.ProcessState
	return s.UserTime() + s.SystemTime(), nil
}

// treeTime returns the processor time of a process, the children it has waited
// for and those that run, to 10 ms each (proc_pid_stat(5)).
func treeTime(pid int) (time.Duration, error) {
	fields, err := lab.Stat(pid)
	if err != nil {
		return 0, err
	}
	const utime, cstime = 14, 17
	var total time.Duration
	for _, field := range fields[utime : cstime+1] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ticks) * 10 * time.Millisecond
	}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	for _, list := range lists {
		text, _ := os.ReadFile(list) // a thread may have ended
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				used, _ := treeTime(child) // and a child
				total += used
			}
		}
	}
	return total, nil
}
