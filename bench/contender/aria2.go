package contender

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

var aria2 = &Contender{
	Name: "aria2",
	Settings: "BitTorrent with our piece length; a tracker at the source that names all peers at once; no limit of peers or rates, " +
		"no DHT, LPD or PEX, --bt-request-peer-speed-limit=1024M, --file-allocation=none",
	tools: []tool{{[]string{"aria2c"}, "aria2"}},
	race:  raceAria2,
}

const aria2RPC = 6800

func raceAria2(ctx context.Context, r *race) error {
	metainfo, err := r.writeMetainfo()
	if err != nil {
		return err
	}
	hook := filepath.Join(r.Dir, "complete")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho complete\n"), 0o755); err != nil {
		return err
	}
	tracker, err := r.track(ctx)
	if err != nil {
		return err
	}
	defer tracker.close()
	flags := []string{"--no-conf", "--summary-interval=0", "--show-console-readout=false", "--enable-color=false",
		"--disable-ipv6=true", "--enable-dht=false", "--bt-enable-lpd=false", "--enable-peer-exchange=false",
		"--bt-tracker=" + tracker.URL, "--listen-port=" + strconv.Itoa(torrentPort),
		"--bt-max-peers=0", "--bt-request-peer-speed-limit=1024M", "--file-allocation=none", "--seed-ratio=0",
		"--follow-torrent=mem", "--bt-save-metadata=false"}
	seeder, err := r.start(r.Source, r.Dir, "aria2c", append(flags, "--dir="+filepath.Dir(r.File.Path), "--bt-seed-unverified=true",
		"--enable-rpc", "--rpc-listen-port="+strconv.Itoa(aria2RPC), metainfo)...)
	if err != nil {
		return err
	}
	if err := seeder.listens(ctx, torrentPort); err != nil {
		return err
	}
	if _, err := seeder.until(ctx, func() error { _, err := aria2Sent(ctx, r); return err }); err != nil {
		return err
	}
	if err := r.begin(); err != nil {
		return err
	}
	peers := make([]*process, len(r.Sinks))
	for i, host := range r.Sinks {
		peers[i], err = r.start(host, r.sinkDir(i), "aria2c", append(flags, "--dir="+r.sinkDir(i), "--on-bt-download-complete="+hook, metainfo)...)
		if err != nil {
			return err
		}
	}
	err = r.finish(ctx, func(ctx context.Context, sink int) (time.Time, error) {
		return peers[sink].says(ctx, "complete\n")
	})
	if err != nil {
		return err
	}
	if r.payload, err = aria2Sent(ctx, r); err != nil {
		return err
	}
	return r.verify(fileName)
}

// aria2Sent asks the seeder how many bytes it has sent, over its own loopback.
func aria2Sent(ctx context.Context, r *race) (int64, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return r.Source.Dial(ctx, network, addr)
	}}
	const question = `{"jsonrpc":"2.0","id":"bench","method":"aria2.tellActive","params":[["uploadLength","completedLength"]]}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/jsonrpc", aria2RPC), bytes.NewReader([]byte(question)))
	if err != nil {
		return 0, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer struct {
		Result []struct {
			Sent int64 `json:"uploadLength,string"`
			Held int64 `json:"completedLength,string"`
		} `json:"result"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return 0, fmt.Errorf("read the seeder's answer: %w", err)
	}
	if len(answer.Result) != 1 || answer.Result[0].Held != r.File.Size {
		return 0, fmt.Errorf("the seeder does not seed: %w", os.ErrNotExist)
	}
	return answer.Result[0].Sent, nil
}
