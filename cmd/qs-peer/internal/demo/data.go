package demo

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
)

var (
	words = []string{"alder", "amber", "basin", "birch", "cedar", "coral", "delta", "ember", "fjord", "grove",
		"harbor", "iris", "jade", "karst", "lagoon", "maple", "north", "onyx", "pearl", "quartz", "river",
		"slate", "tundra", "umber", "vale", "willow", "yarrow", "zephyr"}
	tlds = []string{"com", "net", "org", "io", "dev"}
)

// writePairs writes n pairs as JSON Lines, the settings of as many invented
// domains: always the same ones.
func writePairs(w io.Writer, n int) error {
	out := bufio.NewWriterSize(w, 256<<10)
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(from []string) string { return from[rnd.IntN(len(from))] }
	for i := range n {
		_, err := fmt.Fprintf(out,
			`{"key":"zone/%s-%s-%06d.%s/settings","value":"origin=192.0.2.%d; ttl=%d; cache=%s; rules=%016x%016x%016x; updated=2026-%02d-%02d"}`+"\n",
			pick(words), pick(words), i, pick(tlds), rnd.IntN(256), 30*(1+rnd.IntN(120)), pick([]string{"on", "off", "bypass"}),
			rnd.Uint64(), rnd.Uint64(), rnd.Uint64(), 1+rnd.IntN(12), 1+rnd.IntN(28))
		if err != nil {
			return err
		}
	}
	return out.Flush()
}
