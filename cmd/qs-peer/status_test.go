package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/qs-peer/qs-peer/cmd/qs-peer/internal/client"
)

func TestStatusForPeople(t *testing.T) {
	var out bytes.Buffer
	_, err := showStatus(&out, &client.Status{
		Self: "w1",
		Members: []client.Member{
			{Name: "w1", Role: "worker", Colo: "fra", State: "bootstrapping", Progress: 0.5, HeadSeq: 1200, LagEntries: 1200,
				BytesFromManagers: 1 << 20, BytesFromWorkers: 3 << 20, Version: "v1", Error: "a piece is bad"},
			{Name: "m1", Role: "manager", Writer: true, Colo: "fra", State: "serving", AppliedSeq: 1200, SnapshotSeq: 1000, Version: "v1"},
			{Name: "w2", Role: "worker", Colo: "ams", State: "serving", AppliedSeq: 1199, LagEntries: 1, LagSeconds: 0.25, Version: "v1"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `NAME  ROLE    COLO  STATE                          APPLIED        LAG  SNAPSHOT  FROM MANAGERS  FROM WORKERS  VERSION
w1 *  worker  fra   bootstrapping █████░░░░░  50%        0      1,200         -        1.0 MiB       3.0 MiB  v1
m1    writer  fra   serving                          1,200          0     1,000            0 B           0 B  v1
w2    worker  ams   serving                          1,199  1 (250ms)         -            0 B           0 B  v1
w1: a piece is bad
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", strings.ReplaceAll(got, " ", "·"), strings.ReplaceAll(want, " ", "·"))
	}
}
