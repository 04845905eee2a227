// Package client speaks a node's HTTP interface (see internal/peer) on behalf of
// the commands, and turns what can go wrong into sentences that say what to do.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// maxErrorBody bounds how much of an error's body is read, in bytes.
const maxErrorBody = 64 << 10

// Options say which node to talk to, and how.
type Options struct {
	// Addr is host:port, or an http or https URL without a path.
	Addr string
	// TLS are the client's certificate and what the node's is checked against. Without
	// them Addr can not be https; with them, host:port is.
	TLS trust.Files
	// Silence is the longest wait for an answer, or for more of it; 0 waits for ever.
	Silence time.Duration
}

// Client talks to one node. Its methods may be called concurrently.
type Client struct {
	base    url.URL
	me      trust.Identity // zero without TLS
	silence time.Duration
	http    *http.Client
}

// UsageError is a mistake in the Options.
type UsageError struct{ err error }

func (e *UsageError) Error() string { return e.err.Error() }
func (e *UsageError) Unwrap() error { return e.err }

func usage(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// New returns a client. The error is a *UsageError, or says what is wrong with a
// certificate.
func New(o Options) (*Client, error) {
	base, err := o.base()
	if err != nil {
		return nil, err
	}
	c := &Client{
		base:    base,
		silence: o.Silence,
		http: &http.Client{
			// The interface redirects nobody; following one would hide a mistake.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		DisableCompression:  true,
		WriteBufferSize:     64 << 10,
		ReadBufferSize:      64 << 10,
	}
	if base.Scheme == "https" {
		if c.me, err = useTLS(transport, o.TLS); err != nil {
			return nil, err
		}
	}
	c.http.Transport = transport
	return c, nil
}

// base checks what does not need a file, and returns where requests go.
func (o *Options) base() (url.URL, error) {
	secure := o.TLS != trust.Files{}
	if secure && (o.TLS.CA == "" || o.TLS.Cert == "" || o.TLS.Key == "") {
		return url.URL{}, usage("--tls-ca, --tls-cert and --tls-key go together, as do QS_TLS_CA, QS_TLS_CERT and QS_TLS_KEY: give all three")
	}
	text := o.Addr
	switch {
	case strings.Contains(text, "://"):
	case secure:
		text = "https://" + text
	default:
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" ||
		u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil {
		return url.URL{}, usage("address %q: want HOST:PORT, https://HOST:PORT or http://HOST:PORT", o.Addr)
	}
	if u.Scheme == "https" && !secure {
		return url.URL{}, usage("address %q: a node wants a certificate: give --tls-ca, --tls-cert and --tls-key, or QS_TLS_CA, QS_TLS_CERT and QS_TLS_KEY", o.Addr)
	}
	return url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// Addr returns the node's host:port.
func (c *Client) Addr() string { return c.base.Host }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is a node's refusal.
type Error struct {
	Status  int    // of HTTP
	Message string // the node's sentence
	Writer  string // on 421: where writes go, as a URL; empty when unknown
}

func (e *Error) Error() string {
	if e.Writer != "" {
		return fmt.Sprintf("%s (--addr %s)", e.Message, strings.TrimPrefix(strings.TrimPrefix(e.Writer, "http://"), "https://"))
	}
	return e.Message
}

// ErrNoConnection means that no request left this machine.
var ErrNoConnection = errors.New("nothing listens")

// errSilent ends a request whose node said nothing for too long.
var errSilent = errors.New("silent")

// request is one call of the interface.
type request struct {
	method string
	path   string // percent-encoded
	query  url.Values
	body   []byte
	typ    string // of the body
}

// do sends r and returns the answer if it is a success. The caller closes its body.
func (c *Client) do(ctx context.Context, r request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watchdog *time.Timer
	if c.silence > 0 {
		watchdog = time.AfterFunc(c.silence, func() { cancel(errSilent) })
	}
	release := func() {
		if watchdog != nil {
			watchdog.Stop()
		}
		cancel(nil)
	}

	u := c.base
	u.RawPath = r.path
	u.Path, _ = url.PathUnescape(r.path)
	u.RawQuery = r.query.Encode()
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), bytes.NewReader(r.body))
	if err != nil {
		release()
		return nil, err
	}
	if r.typ != "" {
		req.Header.Set("Content-Type", r.typ)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		err = c.explain(ctx, err)
		release()
		return nil, err
	}
	body := &watchedBody{ReadCloser: resp.Body, client: c, ctx: ctx, watchdog: watchdog, release: release}
	if resp.StatusCode/100 != 2 {
		defer body.Close()
		return nil, c.refusal(resp.StatusCode, body)
	}
	resp.Body = body
	return resp, nil
}

// refusal decodes the body of an error.
func (c *Client) refusal(status int, body io.Reader) error {
	text, _ := io.ReadAll(io.LimitReader(body, maxErrorBody))
	if status == http.StatusBadRequest && c.base.Scheme == "http" && bytes.HasPrefix(text, []byte(tlsHint)) {
		return c.errNeedsTLS()
	}
	var e struct{ Error, Writer string }
	if json.Unmarshal(text, &e) != nil || e.Error == "" {
		e.Error = fmt.Sprintf("the node answered %d %s", status, http.StatusText(status))
		if line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n"); line != "" && len(line) < 200 {
			e.Error += ": " + line
		}
	}
	return &Error{Status: status, Message: e.Error, Writer: e.Writer}
}

// explain words an error of the connection.
func (c *Client) explain(ctx context.Context, err error) error {
	var dns *net.DNSError
	switch {
	case errors.Is(context.Cause(ctx), errSilent):
		return fmt.Errorf("the node at %s said nothing for %v: look at its log, or raise --timeout", c.base.Host, c.silence)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s: is the node running? (its HTTP address is in addrs.json in its data directory; give it with --addr)", ErrNoConnection, c.base.Host)
	case errors.As(err, &dns):
		return fmt.Errorf("cannot resolve %s: %s (--addr)", dns.Name, dns.Err)
	}
	var ue *url.Error
	if errors.As(err, &ue) { // drop the method and the URL, which the user did not type
		err = ue.Err
	}
	if c.base.Scheme == "https" {
		if err := c.explainTLS(err); err != nil {
			return err
		}
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the node at %s closed the connection without an answer: look at its log", c.base.Host)
	}
	return fmt.Errorf("cannot talk to the node at %s: %w", c.base.Host, err)
}

// watchedBody is a body that must not fall silent.
type watchedBody struct {
	io.ReadCloser
	client   *Client
	ctx      context.Context
	watchdog *time.Timer
	release  func()
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if b.watchdog != nil {
		b.watchdog.Reset(b.client.silence)
	}
	n, err := b.ReadCloser.Read(p)
	if b.watchdog != nil {
		b.watchdog.Stop() // the reader may take its time
	}
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return n, ErrCutOff
	default:
		return n, b.client.explain(b.ctx, err)
	}
}

func (b *watchedBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}

// ErrCutOff means that an answer ended before it was complete.
var ErrCutOff = errors.New("the node cut its answer off")
