package contender

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var rsync = &Contender{
	Name:     "rsync",
	Settings: "a daemon at the source, every sink pulls at once; --whole-file --inplace, no compression",
	tools:    []tool{{[]string{"rsync"}, "rsync"}},
	race:     raceRsync,
}

const rsyncPort = 873

var rsyncLiteral = regexp.MustCompile(`Literal data: ([0-9,.]+) bytes`)

func raceRsync(ctx context.Context, r *race) error {
	config := filepath.Join(r.Dir, "rsyncd.conf")
	text := fmt.Sprintf("use chroot = no\nuid = %d\ngid = %d\nreverse lookup = no\n[it]\npath = %s\nread only = yes\n",
		os.Getuid(), os.Getgid(), filepath.Dir(r.File.Path))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	daemon, err := r.start(r.Source, r.Dir, "rsync", "--daemon", "--no-detach", "--config", config, "--log-file=/dev/null")
	if err != nil {
		return err
	}
	if err := daemon.listens(ctx, rsyncPort); err != nil {
		return err
	}
	if err := r.begin(); err != nil {
		return err
	}
	clients := make([]*process, len(r.Sinks))
	for i, host := range r.Sinks {
		clients[i], err = r.start(host, r.sinkDir(i), "rsync", "--whole-file", "--inplace", "--stats",
			fmt.Sprintf("rsync://%s:%d/it/%s", r.Source.Addr(), rsyncPort, fileName), fileName)
		if err != nil {
			return err
		}
	}
	err = r.finish(ctx, func(ctx context.Context, sink int) (time.Time, error) { return clients[sink].ends(ctx) })
	if err != nil {
		return err
	}
	for _, c := range clients {
		output, _ := c.printed()
		n, err := number(rsyncLiteral, output)
		if err != nil {
			return err
		}
		r.payload += n
	}
	return r.verify(fileName)
}

// number returns the last number that pattern finds, which may have separators.
func number(pattern *regexp.Regexp, text []byte) (int64, error) {
	found := pattern.FindAllSubmatch(text, -1)
	if len(found) == 0 {
		return 0, fmt.Errorf("no %q in what was printed:\n%s", pattern, bytes.TrimSpace(text))
	}
	digits := strings.NewReplacer(",", "", ".", "").Replace(string(found[len(found)-1][1]))
	return strconv.ParseInt(digits, 10, 64)
}
