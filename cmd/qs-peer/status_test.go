package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
)

func wantText(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", strings.ReplaceAll(got, " ", "·"), strings.ReplaceAll(want, " ", "·"))
	}
}

func TestStatusForPeople(t *testing.T) {
	var out bytes.Buffer
	_, err := showStatus(&out, &client.Status{
		Self: "w1",
		Members: []client.Member{
			{Name: "w1", Role: "worker", Colo: "fra", State: "bootstrapping", Progress: 0.5, HeadSeq: 1200, LagEntries: 1200,
				BytesFromManagers: 1 << 20, BytesFromWorkers: 3 << 20, BytesFromOwnColo: 2 << 20, BytesFromOtherColos: 1 << 20, Version: "v1", Error: "a piece is bad"},
			{Name: "m1", Role: "manager", Writer: true, Colo: "fra", State: "serving", AppliedSeq: 1200, SnapshotSeq: 1000, Version: "v1"},
			{Name: "w2", Role: "worker", Colo: "ams", State: "serving", AppliedSeq: 1199, LagEntries: 1, LagSeconds: 0.25, Version: "v1"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, out.String(), `NAME  ROLE    COLO  STATE                          APPLIED        LAG  SNAPSHOT  FROM MANAGERS  OWN COLO  OTHER COLOS  VERSION
w1 *  worker  fra   bootstrapping █████░░░░░  50%        0      1,200         -        1.0 MiB   2.0 MiB      1.0 MiB  v1
m1    writer  fra   serving                          1,200          0     1,000            0 B       0 B          0 B  v1
w2    worker  ams   serving                          1,199  1 (250ms)         -            0 B       0 B          0 B  v1
w1: a piece is bad
`)
}

// fetchingFleet is a manager and two workers, of which one fetches, in one colo.
func fetchingFleet() *client.Status {
	left := 65.4
	return &client.Status{
		Self: "manager-1",
		Members: []client.Member{
			{Name: "manager-1", Role: "manager", Writer: true, Colo: "fra", State: "serving", AppliedSeq: 1200, SnapshotSeq: 1000, Version: "v1"},
			{Name: "worker-1", Role: "worker", Colo: "fra", State: "bootstrapping", Progress: 0.25, HeadSeq: 1200, LagEntries: 1200,
				Fetching: "aa", FetchDone: 256 << 20, FetchTotal: 1 << 30, Rate: 11_900_000, SecondsLeft: &left,
				BytesFromManagers: 64 << 20, PiecesFromManagers: 64, BytesFromOwnColo: 192 << 20, PiecesFromOwnColo: 192, Version: "v1"},
			{Name: "worker-2", Role: "worker", Colo: "fra", State: "serving", AppliedSeq: 1200, Version: "v1"},
		},
	}
}

func TestStatusWhileFetching(t *testing.T) {
	s := fetchingFleet()
	for _, c := range []struct {
		name  string
		width int
		want  string
	}{
		{"a pipe", 0, `
NAME         ROLE    COLO  STATE                          APPLIED    LAG  SNAPSHOT        RATE   LEFT  FROM MANAGERS (PIECES)         OWN COLO  VERSION
manager-1 *  writer  fra   serving                          1,200      0     1,000           -      -                 0 B (0)          0 B (0)  v1
worker-1     worker  fra   bootstrapping ██▌░░░░░░░  25%        0  1,200         -  11.3 MiB/s  1m06s           64.0 MiB (64)  192.0 MiB (192)  v1
worker-2     worker  fra   serving                          1,200      0         -           -      -                 0 B (0)          0 B (0)  v1
`}, {"wide", 124, `
NAME         ROLE    COLO  STATE                            LAG        RATE   LEFT  FROM MANAGERS (PIECES)         OWN COLO
manager-1 *  writer  fra   serving                            0           -      -                 0 B (0)          0 B (0)
worker-1     worker  fra   bootstrapping ██▌░░░░░░░  25%  1,200  11.3 MiB/s  1m06s           64.0 MiB (64)  192.0 MiB (192)
worker-2     worker  fra   serving                            0           -      -                 0 B (0)          0 B (0)
`}, {"narrow", 80, `
NAME         COLO  STATE                     RATE   LEFT  MANAGERS   OWN COLO
manager-1 *  fra   serving                      -      -       0 B        0 B
worker-1     fra   bootstrapping  25%  11.3 MiB/s  1m06s  64.0 MiB  192.0 MiB
worker-2     fra   serving                      -      -       0 B        0 B
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines := statusTable(s, s.Members, c.width).Lines(false, c.width)
			wantText(t, "\n"+strings.Join(lines, "\n")+"\n", c.want)
		})
	}
	for width := 1; width < 160; width++ {
		for _, line := range statusTable(s, s.Members, width).Lines(false, width) {
			if n := utf8.RuneCountInString(line); n > width {
				t.Errorf("%q is %d cells wide, of %d", line, n, width)
			}
		}
	}
	if got, want := fetchSummary(s), "1 node fetches: 25%, 11.3 MiB/s, 1m06s left"; got != want {
		t.Errorf("summary %q, want %q", got, want)
	}
	s.Members[2].Fetching, s.Members[2].FetchTotal = "aa", 1<<30
	if got, want := fetchSummary(s), "2 nodes fetch: 12%, 11.3 MiB/s, 1m06s left"; got != want {
		t.Errorf("summary %q, want %q", got, want)
	}
	s.Members[1].Fetching, s.Members[2].Fetching = "", ""
	if got := fetchSummary(s); got != "" {
		t.Errorf("summary of no fetch: %q", got)
	}
}

func TestWatchFirst(t *testing.T) {
	members := []client.Member{{Name: "a", State: "serving"}}
	for i := range 3 {
		members = append(members,
			client.Member{Name: fmt.Sprintf("s%d", i), State: "serving"}, client.Member{Name: fmt.Sprintf("f%d", i), State: "failed"},
			client.Member{Name: fmt.Sprintf("m%d", i), State: "serving", Fetching: "aa"})
	}
	var names []string
	for _, m := range watchFirst(members, "s1") {
		names = append(names, m.Name)
	}
	if got, want := strings.Join(names, " "), "s1 f0 m0 f1 m1 f2 m2 a s0 s2"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
}
