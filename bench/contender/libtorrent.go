package contender

import (
	"context"
	_ "embed"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"
)

var libtorrent = &Contender{
	Name: "libtorrent",
	Settings: "BitTorrent with our piece length, TCP; every peer is told all others; no rate limits, all peers unchoked, " +
		"no DHT, LSD, UPnP, NAT-PMP or encryption",
	// Debian's interpreter: another one does not see Debian's modules.
	tools: []tool{{[]string{debianPython, "-I", "-c", "import libtorrent"}, "python3-libtorrent"}},
	race:  raceLibtorrent,
}

const debianPython = "/usr/bin/python3"

//go:embed libtorrentpeer.py
var libtorrentScript string

var libtorrentSent = regexp.MustCompile(`sent ([0-9]+)`)

func raceLibtorrent(ctx context.Context, r *race) error {
	metainfo, err := r.writeMetainfo()
	if err != nil {
		return err
	}
	addresses := r.addresses()
	// peer returns the arguments of one: its own address comes first.
	peer := func(number int, dir string) []string {
		return slices.Concat([]string{"-I", "-c", libtorrentScript, metainfo, dir}, addresses[number:], addresses[:number])
	}
	seeder, err := r.start(r.Source, r.Dir, debianPython, peer(0, filepath.Dir(r.File.Path))...)
	if err != nil {
		return err
	}
	if _, err := seeder.says(ctx, "complete\n"); err != nil {
		return err
	}
	if err := r.begin(); err != nil {
		return err
	}
	peers := make([]*process, len(r.Sinks))
	for i, host := range r.Sinks {
		if peers[i], err = r.start(host, r.sinkDir(i), debianPython, peer(i+1, r.sinkDir(i))...); err != nil {
			return err
		}
	}
	err = r.finish(ctx, func(ctx context.Context, sink int) (time.Time, error) { return peers[sink].says(ctx, "complete\n") })
	if err != nil {
		return err
	}
	if err := seeder.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if _, err := seeder.ends(ctx); err != nil {
		return err
	}
	output, _ := seeder.printed()
	if r.payload, err = number(libtorrentSent, output); err != nil {
		return err
	}
	return r.verify(fileName)
}
