package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/term"
	"github.com/qs-peer/qs-peer/internal/peer"
)

// screen is what a terminal shows: a pseudo-terminal, and as much of a terminal
// as the commands make use of.
type screen struct {
	tty *os.File // for the command

	mu      sync.Mutex // guards what follows
	columns int
	lines   [][]rune
	x, y    int
}

func newScreen(t *testing.T, columns, rows int) *screen {
	t.Helper()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	host, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals: %v", err)
	}
	t.Cleanup(func() { host.Close() })
	fd := int(host.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{tty: tty, columns: columns}
	s.resize(t, columns, rows)
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 4096)
		var rest []byte
		for {
			n, err := host.Read(buf)
			rest = s.take(append(rest, buf[:n]...))
			if err != nil {
				return // EIO: the command's side was closed
			}
		}
	})
	t.Cleanup(func() { tty.Close(); reading.Wait() })
	return s
}

func (s *screen) resize(t *testing.T, columns, rows int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.columns = columns
	if err := unix.IoctlSetWinsize(int(s.tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(columns), Row: uint16(rows)}); err != nil {
		t.Fatal(err)
	}
}

var escape = regexp.MustCompile(`^\x1b\[([0-9;]*)([A-Za-z])`)

// take draws b and returns what is cut short at its end.
func (s *screen) take(b []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := string(b)
	for text != "" {
		if text[0] == 0x1b {
			m := escape.FindStringSubmatch(text)
			if m == nil {
				break
			}
			s.control(m[2], m[1])
			text = text[len(m[0]):]
			continue
		}
		r, rest, ok := cutRune(text)
		if !ok {
			break
		}
		text = rest
		s.put(r)
	}
	return []byte(text)
}

func cutRune(s string) (r rune, rest string, ok bool) {
	for i, c := range s {
		if i > 0 {
			return r, s[i:], true
		}
		r = c
	}
	return r, "", r != '\ufffd'
}

func (s *screen) control(what, arg string) {
	switch what {
	case "A":
		n, _ := strconv.Atoi(arg)
		s.y = max(0, s.y-max(1, n))
	case "J":
		s.lines = s.lines[:min(len(s.lines), s.y+1)]
		s.clearLine()
	case "K":
		s.clearLine()
	case "m":
	default:
		panic("the terminal does not know " + arg + what)
	}
}

func (s *screen) clearLine() {
	if s.y < len(s.lines) {
		s.lines[s.y] = s.lines[s.y][:min(len(s.lines[s.y]), s.x)]
	}
}

func (s *screen) put(r rune) {
	switch r {
	case '\r':
		s.x = 0
		return
	case '\n':
		s.y++
		return
	}
	if s.x >= s.columns {
		s.x, s.y = 0, s.y+1
	}
	for len(s.lines) <= s.y {
		s.lines = append(s.lines, nil)
	}
	line := s.lines[s.y]
	for len(line) <= s.x {
		line = append(line, ' ')
	}
	line[s.x] = r
	s.lines[s.y] = line
	s.x++
}

var stamp = regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d\.\d{3} `)

// text is all that is shown, without blanks at the ends of lines and times at
// their beginnings.
func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, line := range s.lines {
		b.WriteString(strings.TrimRight(string(line), " ") + "\n")
	}
	return stamp.ReplaceAllString(strings.TrimRight(b.String(), "\n"), "")
}

// shows waits until the screen shows exactly want.
func (s *screen) shows(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for s.text() != want {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			t.Fatalf("the screen shows\n%s\nwant\n%s", s.text(), want)
		}
	}
}

// A watched status is redrawn in place, grows and shrinks, and fits.
func TestWatchOnATerminal(t *testing.T) {
	s := newScreen(t, 80, 6)
	fmt.Fprintln(s.tty, "before")
	statuses := make(chan *client.Status)
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		if err := watchStatus(ctx, s.tty, func(ctx context.Context, w io.Writer) (int, error) {
			select {
			case status := <-statuses:
				return showStatus(w, status)
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}); err != nil {
			t.Error(err)
		}
	})
	defer watching.Wait()
	defer cancel()

	fleet := fetchingFleet()
	statuses <- fleet
	s.shows(t, `before
NAME         COLO  STATE                     RATE   LEFT  MANAGERS   OWN COLO
manager-1 *  fra   serving                      -      -       0 B        0 B
worker-1     fra   bootstrapping  25%  11.3 MiB/s  1m06s  64.0 MiB  192.0 MiB
worker-2     fra   serving                      -      -       0 B        0 B
1 node fetches: 25%, 11.3 MiB/s, 1m06s left`)

	// More members than lines: those that are worth watching stay.
	s.resize(t, 60, 6)
	fleet.Members = append(fleet.Members, client.Member{Name: "worker-3", State: "failed", Colo: "fra"}, client.Member{Name: "worker-4", State: "serving", Colo: "fra"})
	statuses <- fleet
	s.shows(t, `before
NAME         STATE                     RATE   LEFT  MANAGERS
manager-1 *  serving                      -      -       0 B
worker-1     bootstrapping  25%  11.3 MiB/s  1m06s  64.0 MiB
… and 3 more
1 node fetches: 25%, 11.3 MiB/s, 1m06s left`)

	fleet.Members = fleet.Members[:1]
	statuses <- fleet
	s.shows(t, `before
NAME         ROLE    COLO  STATE    APPLIED  LAG
manager-1 *  writer  fra   serving    1,200    0`)
}

// The log goes above the line of a fetch, which goes when the fetch ends.
func TestFetchOnATerminal(t *testing.T) {
	s := newScreen(t, 80, 24)
	log, footer := newLogger(s.tty, slog.LevelInfo, false)
	began, left := time.Now(), 9.0
	p := peer.FetchProgress{Total: 100 << 20, Began: &began, Running: true}
	w := &fetchWatch{progress: func() (peer.FetchProgress, bool) { return p, true }, log: log, footer: footer, screen: s.tty}
	log.Info("before")
	w.look(began)
	s.shows(t, "INFO  before\nfetching ░░░░░░░░░░░░░░░░░░░░   0%  0 B of 100.0 MiB  0 B/s")
	log.Info("meanwhile", "part", "x")
	s.shows(t, "INFO  before\nINFO  meanwhile  part=x\nfetching ░░░░░░░░░░░░░░░░░░░░   0%  0 B of 100.0 MiB  0 B/s")
	p.Done, p.Rate, p.SecondsLeft = 30<<20, 8<<20, &left
	p.From.Managers, p.From.OwnColo, p.From.OtherColos = peer.Payload{Bytes: 5 << 20, Pieces: 5}, peer.Payload{Bytes: 20 << 20, Pieces: 20}, peer.Payload{Bytes: 5 << 20, Pieces: 5}
	w.look(began)
	s.shows(t, "INFO  before\nINFO  meanwhile  part=x\nfetching  30%  8.0 MiB/s  9s left  managers 17%, own colo 67%, other colos 17%")
	p.Running = false
	w.look(began)
	s.shows(t, "INFO  before\nINFO  meanwhile  part=x")
	log.Info("after")
	s.shows(t, "INFO  before\nINFO  meanwhile  part=x\nINFO  after")
}

func TestFetchInAPipe(t *testing.T) {
	var out strings.Builder
	log, footer := newLogger(&out, slog.LevelInfo, true)
	began, left := time.Unix(0, 0), 9.4
	p := peer.FetchProgress{Total: 100, Done: 30, Rate: 8, Began: &began, Running: true}
	p.From.OwnColo.Bytes = 20
	w := &fetchWatch{progress: func() (peer.FetchProgress, bool) { return p, true }, log: log, footer: footer, screen: &out}
	for at := time.Duration(0); at < 4*fetchLogged; at += fetchRedraw {
		if at > fetchLogged {
			p.SecondsLeft = &left
		}
		p.Running = at < 3*fetchLogged
		w.look(began.Add(at))
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	const figures = `"msg":"fetch under way","done":30,"total":100,"rate":8`
	const from = `"from_managers":0,"from_own_colo":20,"from_other_colos":0`
	if len(lines) != 2 || !strings.Contains(lines[0], figures+","+from) || !strings.Contains(lines[1], figures+`,"left":9000000000,`+from) {
		t.Errorf("the log is\n%s", out.String())
	}
}

func TestFetchLine(t *testing.T) {
	left := 125.0
	p := peer.FetchProgress{Total: 4 << 30, Done: 1 << 30, Rate: 25 << 20, SecondsLeft: &left}
	p.From.Managers, p.From.OwnColo = peer.Payload{Bytes: 256 << 20, Pieces: 256}, peer.Payload{Bytes: 768 << 20, Pieces: 768}
	for _, c := range []struct {
		width int
		want  string
	}{
		{160, "fetching █████░░░░░░░░░░░░░░░  25%  1.0 GiB of 4.0 GiB  25.0 MiB/s  2m05s left  managers 256.0 MiB (256 pieces), own colo 768.0 MiB (768 pieces)"},
		{120, "fetching █████░░░░░░░░░░░░░░░  25%  1.0 GiB of 4.0 GiB  25.0 MiB/s  2m05s left  managers 256.0 MiB, own colo 768.0 MiB"},
		{100, "fetching █████░░░░░░░░░░░░░░░  25%  25.0 MiB/s  2m05s left  managers 256.0 MiB, own colo 768.0 MiB"},
		{80, "fetching  25%  25.0 MiB/s  2m05s left  managers 25%, own colo 75%"},
		{40, "fetching  25%  25.0 MiB/s  2m05s left"},
		{20, "fetching  25%  25.0…"},
		{0, ""},
	} {
		if got := fetchLine(p, c.width, false); got != c.want {
			t.Errorf("%d cells: got %q, want %q", c.width, got, c.want)
		}
	}
	if got := fetchLine(p, 160, true); !strings.HasPrefix(got, "fetching "+term.Green.In("█████░░░░░░░░░░░░░░░")) {
		t.Errorf("the bar has no colour: %q", got)
	}
}
