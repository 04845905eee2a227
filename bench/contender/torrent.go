package contender

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// torrentPort is where peers listen.
const torrentPort = 6881

// writeMetainfo writes the .torrent and returns where it is.
func (r *race) writeMetainfo() (string, error) {
	path := filepath.Join(r.Dir, fileName+".torrent")
	return path, os.WriteFile(path, r.File.metainfo, 0o644)
}

// tracker is a BitTorrent tracker (BEP 3, BEP 23) that names all hosts of a site
// to everybody, whether they have announced themselves or not.
type tracker struct {
	URL    string
	server *http.Server
	served chan struct{}
}

// track starts one on the source.
func (r *race) track(ctx context.Context) (*tracker, error) {
	ln, err := r.Source.Listen(ctx, "tcp", net.JoinHostPort(r.Source.Addr().String(), "0"))
	if err != nil {
		return nil, fmt.Errorf("start the tracker: %w", err)
	}
	var peers []byte
	add := func(ip [4]byte) { peers = append(append(peers, ip[:]...), torrentPort>>8, torrentPort&0xff) }
	add(r.Source.Addr().As4())
	for _, h := range r.Sinks {
		add(h.Addr().As4())
	}
	answer := "d8:intervali5e5:peers" + strconv.Itoa(len(peers)) + ":" + string(peers) + "e"
	t := &tracker{URL: "http://" + ln.Addr().String() + "/announce", served: make(chan struct{})}
	t.server = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write([]byte(answer)) // a peer that is gone
	})}
	go func() {
		defer close(t.served)
		if err := t.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			_ = ln.Close()
		}
	}()
	return t, nil
}

func (t *tracker) close() {
	_ = t.server.Close()
	<-t.served
}
