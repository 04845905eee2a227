package bench

import (
	"errors"
	"fmt"

	"github.com/qs-peer/qs-peer/bench/lab"
)

// site is the machines of a run and the network between them, made anew for each
// so that no run learns from the one before (the kernel remembers paths). Whoever
// distributes a file, we or a contender, does it on one of these.
type site struct {
	o       *SwarmOptions
	net     *lab.Network
	sources []*lab.Host // managers: they hold the file
	sinks   []*lab.Host // workers: they want it; those that join late at the end
}

func newSite(o *SwarmOptions) (_ *site, err error) {
	s := &site{o: o}
	if s.net, err = lab.New(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.net.Close())
		}
	}()
	for c := range o.Colos {
		if err := s.net.AddColo(coloName(c), o.Between); err != nil {
			return nil, err
		}
	}
	for range o.Managers {
		// At the core, so that what comes from managers enters every colo over its link.
		h, err := s.net.AddHost("", lab.Link{Up: o.ManagerRate, Down: o.ManagerRate})
		if err != nil {
			return nil, err
		}
		s.sources = append(s.sources, h)
	}
	for w := range o.Workers + o.JoinLate {
		h, err := s.net.AddHost(coloName(o.coloOf(w)), o.link(w))
		if err != nil {
			return nil, err
		}
		s.sinks = append(s.sinks, h)
	}
	return s, nil
}

func coloName(colo int) string { return fmt.Sprintf("colo%d", colo+1) }

// frames are what the links of a site have carried, in bytes.
type frames struct {
	out  int64   // of the sources
	into []int64 // each colo
}

func (s *site) frames() (f frames, err error) {
	for _, h := range s.sources {
		t, err := h.Traffic()
		if err != nil {
			return f, err
		}
		f.out += t.Sent
	}
	for c := range s.o.Colos {
		t, err := s.net.ColoTraffic(coloName(c))
		if err != nil {
			return f, err
		}
		f.into = append(f.into, t.Received)
	}
	return f, nil
}
