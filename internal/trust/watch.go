package trust

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// watchInterval is how often the files are looked at.
	watchInterval = 2 * time.Second
	// warnInterval is the least time between two warnings of the certificate's end.
	warnInterval = time.Hour
	// warnShare is the share of its life that is left when the warnings begin.
	warnShare = 4 // a quarter
)

// Watch reloads the files when they change, until ctx ends, and warns when the
// certificate will soon be over. Connections that are there stay. Files that do not
// belong together, as for a moment while they are replaced, or that are of somebody
// else, change nothing: they are looked at again, and the old ones stay in use.
func (c *Credentials) Watch(ctx context.Context) {
	reported := ""
	var warned time.Time
	t := time.NewTicker(watchInterval)
	defer t.Stop()
	for {
		if now := time.Now(); now.Sub(warned) >= warnInterval && c.warn(now) {
			warned = now
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		changed, err := c.Refresh()
		if err != nil {
			c.metrics.reloads.WithLabelValues("failed").Inc()
			if text := err.Error(); text != reported {
				reported = text
				c.o.Logger.Error("the TLS files changed and can not be used; the old ones stay in use", "err", err)
			}
			continue // they may be complete at the next look
		}
		if !changed {
			continue
		}
		reported, warned = "", time.Time{}
		c.metrics.reloads.WithLabelValues("done").Inc()
		c.o.Logger.Info("TLS files reloaded", "identity", c.id, "not_after", c.now.Load().leaf.NotAfter)
	}
}

// Refresh reloads the files if they changed since they were read, and reports whether they
// did. After an error the old ones stay in use. It is for who does not Watch: before it
// connects, a program that runs for long takes up what was replaced meanwhile.
func (c *Credentials) Refresh() (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stamp := c.o.Files.stamp()
	if stamp == c.seen {
		return false, nil
	}
	if err := c.Reload(); err != nil {
		return true, err
	}
	c.seen = stamp
	return true, nil
}

// Reload reads the files now.
func (c *Credentials) Reload() error {
	m, id, err := c.o.Files.load()
	if err != nil {
		return err
	}
	if id != c.id {
		return fmt.Errorf("certificate %s is of %s now, and this is %s: restart to be somebody else", c.o.Files.Cert, id, c.id)
	}
	c.now.Store(m)
	return nil
}

// warn says that the certificate is over or will soon be.
func (c *Credentials) warn(now time.Time) bool {
	leaf := c.now.Load().leaf
	left := leaf.NotAfter.Sub(now)
	switch {
	case left <= 0:
		c.o.Logger.Error("this node's certificate has expired: others refuse it; replace the files, they are reloaded by themselves",
			"file", c.o.Files.Cert, "not_after", leaf.NotAfter)
	case left < leaf.NotAfter.Sub(leaf.NotBefore)/warnShare:
		c.o.Logger.Warn("this node's certificate expires soon: replace the files, they are reloaded by themselves",
			"file", c.o.Files.Cert, "not_after", leaf.NotAfter, "left", left.Round(time.Second))
	default:
		return false
	}
	return true
}

// stamp tells whether a file was replaced or written.
type stamp [3]struct {
	mod  time.Time
	size int64
	mode os.FileMode
	err  bool
}

func (f Files) stamp() (s stamp) {
	for i, path := range []string{f.CA, f.Cert, f.Key} {
		info, err := os.Stat(path)
		if err != nil {
			s[i].err = true
			continue
		}
		s[i].mod, s[i].size, s[i].mode = info.ModTime(), info.Size(), info.Mode()
	}
	return s
}

type metrics struct{ reloads *prometheus.CounterVec }

func newMetrics(reg prometheus.Registerer, c *Credentials) (*metrics, error) {
	m := &metrics{reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "qs_tls_reloads_total", Help: "Times that the TLS files were found changed and read, by result: done, failed.",
	}, []string{"result"})}
	m.reloads.WithLabelValues("done")
	m.reloads.WithLabelValues("failed")
	if reg == nil {
		return m, nil
	}
	end := func(file string, when func(*material) time.Time) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "qs_tls_not_after_timestamp_seconds",
			Help:        "When the node's certificate, or the first of the authorities' certificates, expires; seconds since 1970.",
			ConstLabels: prometheus.Labels{"file": file},
		}, func() float64 { return float64(when(c.now.Load()).Unix()) })
	}
	for _, collector := range []prometheus.Collector{
		m.reloads,
		end("cert", func(m *material) time.Time { return m.leaf.NotAfter }),
		end("ca", func(m *material) time.Time { return m.rootsEnd }),
	} {
		if err := reg.Register(collector); err != nil {
			return nil, err
		}
	}
	return m, nil
}
