package mdbfile

import (
	"bytes"
	"testing"
)

func TestWrittenFileIsReadByLMDB(t *testing.T) {
	for name, c := range map[string]content{
		"empty":       {"kv": {}, "meta": {}},
		"one pair":    {"kv": sequential(1, 8, 100), "meta": {}},
		"one leaf":    {"kv": sequential(20, 8, 100), "meta": sequential(4, 3, 16)},
		"two leaves":  {"kv": sequential(50, 8, 100), "meta": sequential(4, 3, 16)},
		"two levels":  {"kv": sequential(3000, 8, 100), "meta": sequential(4, 3, 16)},
		"three":       {"kv": sequential(20000, 20, 300), "meta": sequential(4, 3, 16)},
		"long keys":   {"kv": sequential(5000, 511, 10), "meta": sequential(4, 3, 16)},
		"empty value": {"kv": sequential(1000, 5, 0), "meta": {}},
		"overflow":    {"kv": sequential(300, 9, 5000), "meta": sequential(2, 9, 70000)},
		"big":         {"kv": sequential(3, 9, 16<<20+1), "meta": {}},
	} {
		t.Run(name, func(t *testing.T) {
			file := build(t, c)
			rep := checkFile(t, file)
			if rep.FreePages != 0 || rep.Tail != 0 || int64(rep.Pages)*pageSize != int64(len(file)) {
				t.Fatalf("%+v for %d bytes", rep, len(file))
			}
			got, err := read(bytes.NewReader(file), c.names())
			must(t, err)
			sameContent(t, "own reader", got, c)
			env := openLMDB(t, install(t, file), c.names())
			defer env.Close()
			sameContent(t, "LMDB", env.scan(t), c)
			env.sameStats(t, "plan", planOf(t, c).Stat)
			env.sameStats(t, "check", func(name string) (Stat, bool) { s, ok := rep.DBs[name]; return s, ok })
		})
	}
}
