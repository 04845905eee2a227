package contender

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/bench/lab"
)

var uftp = &Contender{
	Name: "uftp",
	Settings: "one multicast to all, at 97% of the slowest link's rate with headers (without a rate: 1 Gbit/s); blocks of 1,400 bytes, " +
		"buffers of 4 MiB, first GRTT 50 ms",
	tools: []tool{{[]string{"uftp"}, "uftp"}, {[]string{"uftpd"}, "uftp"}},
	race:  raceUFTP,
}

const (
	uftpBlock = 1400
	// uftpFrame is what a block is on the wire: with headers of the protocol,
	// UDP, IP and Ethernet.
	uftpFrame = uftpBlock + 24 + 8 + 20 + 14
	uftpShare = 0.97
	uftpFree  = lab.Rate(1e9 / 8)
)

func raceUFTP(ctx context.Context, r *race) error {
	const buffer = "4194304"
	sinks := make([]*process, len(r.Sinks))
	var ids []string
	for i, host := range r.Sinks {
		var err error
		dir := r.sinkDir(i)
		sinks[i], err = r.start(host, dir, "uftpd", "-d", "-q", "-I", host.Addr().String(), "-D", dir, "-B", buffer,
			"-F", "@LOG", "-P", filepath.Join(r.Dir, fmt.Sprintf("uftpd%d.pid", i+1)))
		if err != nil {
			return err
		}
		ip := host.Addr().As4()
		ids = append(ids, fmt.Sprintf("0x%X", ip[:]))
	}
	for _, s := range sinks {
		// It says nothing when it is ready; it is when it has joined its group.
		if _, err := s.until(ctx, func() error { return joined(s.cmd.Process.Pid) }); err != nil {
			return err
		}
	}
	if err := r.begin(); err != nil {
		return err
	}
	_, err := r.start(r.Source, r.Dir, "uftp", "-R", strconv.Itoa(uftpRate(r.Rate)), "-b", strconv.Itoa(uftpBlock), "-B", buffer,
		"-r", "0.05", "-q", "-I", r.Source.Addr().String(), "-H", strings.Join(ids, ","), r.File.Path)
	if err != nil {
		return err
	}
	err = r.finish(ctx, func(ctx context.Context, sink int) (time.Time, error) { return sinks[sink].says(ctx, ";copied\n") })
	if err != nil {
		return err
	}
	return r.verify(fileName)
}

// uftpRate returns what to tell uftp, which counts kilobits of 1,024 bits, without
// Ethernet's header, so that its frames take their share of link.
func uftpRate(link lab.Rate) int {
	if link == 0 {
		link = uftpFree
	}
	return int(float64(link) * 8 * uftpShare * (uftpFrame - 14) / uftpFrame / 1024)
}

// joined returns nil once the process's host takes multicasts to uftp's group.
func joined(pid int) error {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/igmp", pid))
	if err != nil {
		return err
	}
	const group = "010404E6" // 230.4.4.1
	if !strings.Contains(string(groups), group) {
		return fmt.Errorf("process %d has not joined 230.4.4.1", pid)
	}
	return nil
}
