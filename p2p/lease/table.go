package lease

import (
	"cmp"
	"slices"
)

// table says who leases what in a colo.
type table struct {
	fetchers []fetcher // by hash
	me       int       // this worker among them
	colos    []uint64  // hashes of the colos that fetch, by value
}

// fetcher is a worker of the colo that fetches the snapshot.
type fetcher struct {
	hash   uint64
	left   int     // pieces of its that are open
	pieces []int32 // that it leases; in its order, once sorted
	sorted bool
	from   int // this worker has all of pieces[:from]
}

// SetFetchers says which live workers of the colo fetch the snapshot (this one
// is always counted) and which colos do so. It costs little when they are the
// same as before, or few of them are not.
func (p *Plan) SetFetchers(workers, colos []string) {
	hashes := []uint64{p.self}
	for _, w := range workers {
		hashes = append(hashes, hashName("qs-fetcher-v1", w))
	}
	p.share(sortedSet(hashes))
	hashes = []uint64{p.colo}
	for _, c := range colos {
		hashes = append(hashes, hashName("qs-colo-v1", c))
	}
	p.settle(sortedSet(hashes))
}

func sortedSet(hashes []uint64) []uint64 {
	slices.Sort(hashes)
	return slices.Compact(hashes)
}

// share finds each piece's holder. It looks only at those who came, unless the
// holder left.
func (p *Plan) share(hashes []uint64) {
	t := &p.table
	if slices.EqualFunc(t.fetchers, hashes, func(f fetcher, h uint64) bool { return f.hash == h }) {
		return
	}
	moved := make([]int32, len(t.fetchers)) // by old index; -1: left
	for i, f := range t.fetchers {
		j, stays := slices.BinarySearch(hashes, f.hash)
		if !stays {
			j = -1
		}
		moved[i] = int32(j)
	}
	var came []int32
	for j, h := range hashes {
		if _, known := slices.BinarySearchFunc(t.fetchers, h, func(f fetcher, h uint64) int { return cmp.Compare(f.hash, h) }); !known {
			came = append(came, int32(j))
		}
	}
	all := make([]int32, len(hashes))
	count := make([]int, len(hashes))
	for j := range all {
		all[j] = int32(j)
	}
	first := len(moved) == 0
	for i := range p.pieces {
		pc := &p.pieces[i]
		among := came
		if first || moved[pc.holder] < 0 {
			among, pc.holder, pc.top = all, 0, 0
			if pc.given { // to the one who left, probably
				pc.given, pc.retry = false, 0
			}
		} else {
			pc.holder = moved[pc.holder]
		}
		hash := hashPiece(p.snapshot, i)
		for _, j := range among {
			if s := score(hashes[j], hash); s >= pc.top {
				pc.holder, pc.top = j, s
			}
		}
		count[pc.holder]++
	}
	t.fetchers = make([]fetcher, len(hashes))
	lists := make([]int32, len(p.pieces))
	for j, h := range hashes {
		t.fetchers[j] = fetcher{hash: h, pieces: lists[:0:count[j]]}
		lists = lists[count[j]:]
	}
	t.me, _ = slices.BinarySearch(hashes, p.self)
	for i := range p.pieces {
		pc := &p.pieces[i]
		f := &t.fetchers[pc.holder]
		f.pieces = append(f.pieces, int32(i))
		if pc.open() {
			f.left++
		}
	}
}

// settle finds this colo's rank for each piece.
func (p *Plan) settle(colos []uint64) {
	if slices.Equal(p.table.colos, colos) {
		return
	}
	p.table.colos = colos
	for i := range p.pieces {
		hash := hashPiece(p.snapshot, i)
		own := score(p.colo, hash)
		rank := int8(0)
		for _, c := range colos {
			if score(c, hash) > own {
				if rank++; rank == yieldMost {
					break
				}
			}
		}
		p.pieces[i].colo = rank
	}
}

// recount keeps fetcher.left true after a change to a piece.
func (p *Plan) recount(pc *piece, wasOpen bool) {
	if open := pc.open(); open && !wasOpen {
		p.table.fetchers[pc.holder].left++
	} else if !open && wasOpen {
		p.table.fetchers[pc.holder].left--
	}
}

// lacking returns a fetcher's leases without most of those that this worker has,
// in the order in which the fetcher goes through them.
func (p *Plan) lacking(f *fetcher) []int32 {
	if !f.sorted {
		slices.SortFunc(f.pieces, func(a, b int32) int {
			return cmp.Compare(p.order(f.hash, int(a)), p.order(f.hash, int(b)))
		})
		f.sorted = true
	}
	for f.from < len(f.pieces) && p.pieces[f.pieces[f.from]].have {
		f.from++
	}
	return f.pieces[f.from:]
}

// order is a piece's place in the order in which a fetcher goes through its
// leases.
func (p *Plan) order(fetcher uint64, i int) uint64 {
	return mix(score(fetcher, hashPiece(p.snapshot, i)))
}
