package contender

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/qs-peer/qs-peer/bench/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newSite has two sinks and a file of 4 MiB.
func newSite(t *testing.T) (Site, *lab.Network) {
	t.Helper()
	n, err := lab.New()
	if errors.Is(err, lab.ErrNotPermitted) {
		t.Skip(err)
	}
	check(t, err)
	t.Cleanup(func() { check(t, n.Close()) })
	const rate = lab.Rate(400e6 / 8)
	s := Site{Rate: rate, Dir: t.TempDir()}
	for i := range 3 {
		h, err := n.AddHost("", lab.Link{Up: rate, Down: rate})
		check(t, err)
		if i == 0 {
			s.Source = h
		} else {
			s.Sinks = append(s.Sinks, h)
		}
	}
	s.File, err = NewFile(t.TempDir(), 4<<20)
	check(t, err)
	return s, n
}

// Every contender brings the file to all sinks.
func TestContenders(t *testing.T) {
	for _, c := range all {
		t.Run(c.Name, func(t *testing.T) {
			if missing := c.Missing(t.Context()); missing != nil {
				t.Skipf("apt-get install %s", strings.Join(missing, " "))
			}
			s, _ := newSite(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			before, err := s.Source.Traffic()
			check(t, err)
			got, err := c.Run(ctx, s)
			check(t, err)
			after, err := s.Source.Traffic()
			check(t, err)
			sent := after.Sent - before.Sent
			t.Logf("%v, %v of processors, the source sent %d bytes of %d, in frames %d", got.Complete, got.CPU, got.Payload, s.File.Size, sent)
			if len(got.Complete) != len(s.Sinks) {
				t.Errorf("%d sinks are complete", len(got.Complete))
			}
			for _, d := range got.Complete {
				// Half the size may pass in the beginning: buckets are full.
				if least := time.Duration(float64(s.File.Size) / float64(s.Rate) / 2 * float64(time.Second)); d < least {
					t.Errorf("complete after %v, which is not possible", d)
				}
			}
			if got.CPU <= 0 {
				t.Error("it took no processor time")
			}
			if sent < s.File.Size*9/10 || got.Payload > sent {
				t.Errorf("the source sent %d bytes in frames, %d of them payload", sent, got.Payload)
			}
			if c != uftp && got.Payload < s.File.Size*9/10 {
				t.Errorf("the source sent %d bytes of a file of %d", got.Payload, s.File.Size)
			}
			if left := holders(t, s.Dir); len(left) > 0 {
				t.Errorf("left are %q", left)
			}
		})
	}
}

// holders returns the processes, but for this one, whose working directory is in
// dir.
func holders(t *testing.T, dir string) (found []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	check(t, err)
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, dir) {
			found = append(found, link)
		}
	}
	return found
}

// A copy that differs is an error, and so are a program that fails and a time
// that is over; no process is left of any.
func TestFailures(t *testing.T) {
	over := errors.New("over")
	for _, c := range []struct {
		name, says string
		race       func(context.Context, *race) error
	}{
		{"altered", "sink 2: file, of 4194304 bytes, differs", func(_ context.Context, r *race) error {
			for i := range r.Sinks {
				text, err := os.ReadFile(r.File.Path)
				if err != nil {
					return err
				}
				text[1e6] ^= byte(i)
				if err := os.WriteFile(filepath.Join(r.sinkDir(i), fileName), text, 0o644); err != nil {
					return err
				}
			}
			return r.verify(fileName)
		}},
		{"missing", "no such file", func(_ context.Context, r *race) error { return r.verify(fileName) }},
		{"fails", "sh on 10.171.0.2 failed (exit status 3), saying:\nlast words", func(ctx context.Context, r *race) error {
			return racers(ctx, r, "echo last words; exit 3")
		}},
		{"takes too long", "over", func(ctx context.Context, r *race) error { return racers(ctx, r, "sleep 1000 & wait") }},
		{"no such program", "start nonsense on 10.171.0.1", func(_ context.Context, r *race) error {
			_, err := r.start(r.Source, r.Dir, "nonsense")
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := newSite(t)
			ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Second, over)
			defer cancel()
			_, err := (&Contender{Name: "somebody", race: c.race}).Run(ctx, s)
			if err == nil || !strings.HasPrefix(err.Error(), "somebody: ") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("want an error that says %q, got %v", c.says, err)
			}
			if left := holders(t, s.Dir); len(left) > 0 {
				t.Errorf("left are %q", left)
			}
		})
	}
}

// racers runs a script on the first sink only; the others end well.
func racers(ctx context.Context, r *race, script string) error {
	if err := r.begin(); err != nil {
		return err
	}
	var sinks []*process
	for i, h := range r.Sinks {
		p, err := r.start(h, r.sinkDir(i), "sh", "-c", script)
		if err != nil {
			return err
		}
		sinks, script = append(sinks, p), "exit 0"
	}
	return r.finish(ctx, func(ctx context.Context, sink int) (time.Time, error) { return sinks[sink].ends(ctx) })
}

// What is not installed is told by the name of its package.
func TestMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for _, c := range []struct {
		*Contender
		pkg string
	}{{rsync, "rsync"}, {aria2, "aria2"}, {uftp, "uftp"}, {redis, "redis-server"}} {
		if got := c.Missing(t.Context()); !slices.Equal(got, []string{c.pkg}) {
			t.Errorf("of %s is missing %q", c.Name, got)
		}
	}
	module := &Contender{tools: []tool{{[]string{"/bin/sh", "-c", "exit 1"}, "python3-something"}}}
	if got := module.Missing(t.Context()); !slices.Equal(got, []string{"python3-something"}) {
		t.Errorf("of a module is missing %q", got)
	}
}

func TestChoose(t *testing.T) {
	got, err := Choose(Names())
	if err != nil || !slices.Equal(got, all) {
		t.Errorf("of all names were chosen %v, %v", got, err)
	}
	if _, err := Choose([]string{"rsync", "scp"}); err == nil || !strings.Contains(err.Error(), `"scp": there are rsync, aria2, libtorrent, uftp, redis`) {
		t.Errorf("scp: %v", err)
	}
	if _, err := Choose([]string{"rsync", "rsync"}); err == nil || !strings.Contains(err.Error(), "rsync is named twice") {
		t.Errorf("rsync twice: %v", err)
	}
}

// Frames of uftp take a little less than the link.
func TestUFTPRate(t *testing.T) {
	for _, link := range []lab.Rate{0, 1e6, 100e6 / 8} {
		blocks := float64(uftpRate(link)) * 1024 / 8 / (uftpFrame - 14) // per second
		if link == 0 {
			link = uftpFree
		}
		if share := blocks * uftpFrame / float64(link); share < 0.96 || share > uftpShare {
			t.Errorf("%s: %g of the link", link, share)
		}
	}
}
