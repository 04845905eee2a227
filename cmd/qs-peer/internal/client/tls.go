package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/qs-peer/qs-peer/internal/trust"
)

// useTLS has t show who the client is, and talk to nodes of its own trust domain only. Files
// that were replaced are taken up by the next connection; while they can not be used, as
// for a moment while they are replaced, the ones before are.
func useTLS(t *http.Transport, files trust.Files) (trust.Identity, error) {
	c, err := trust.Open(trust.Options{Files: files})
	if err != nil {
		return trust.Identity{}, fmt.Errorf("open TLS files: %w", err)
	}
	t.TLSClientConfig = c.ClientConfig(trust.Want("", trust.NodeRoles()...))
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		_, _ = c.Refresh()
		return dial(ctx, network, addr)
	}
	return c.Identity(), nil
}

// tlsHint begins what a node that speaks TLS tells those who do not (internal/edge).
const tlsHint = "This port speaks TLS"

// errNeedsTLS is the answer to who forgot the certificate.
func (c *Client) errNeedsTLS() error {
	return fmt.Errorf("the node at %s speaks TLS: give a certificate with --tls-ca, --tls-cert and --tls-key, or in QS_TLS_CA, QS_TLS_CERT and QS_TLS_KEY (and no http:// in --addr)", c.base.Host)
}

// explainTLS words what went wrong between two certificates; nil if it is something
// else.
func (c *Client) explainTLS(err error) error {
	if errors.Is(err, http.ErrSchemeMismatch) { // what net/http makes of a plain answer
		return fmt.Errorf("the node at %s does not speak TLS: write http://%s if that is meant to be so", c.base.Host, c.base.Host)
	}
	switch why := trust.ReasonOf(err); why {
	case trust.Failed:
		return nil
	case trust.NotTLS:
		return fmt.Errorf("what answers at %s does not speak TLS: write http://%s if that is meant to be so", c.base.Host, c.base.Host)
	case trust.UnknownAuthority:
		return fmt.Errorf("the certificate of the node at %s is not by the authorities in --tls-ca: wrong node, or wrong file? (%w)", c.base.Host, err)
	case trust.Expired:
		return fmt.Errorf("the certificate of the node at %s is expired or not valid yet: renew it there, or check the clocks (%w)", c.base.Host, err)
	case trust.Refused:
		return fmt.Errorf("the node at %s refused the certificate of %s (%s): its authority, its dates or its trust domain are not what that node trusts; the node's log says which (%s)",
			c.base.Host, c.me.Name, c.me.Role, strings.TrimPrefix(err.Error(), "remote error: "))
	default:
		return fmt.Errorf("what answers at %s is no node to be trusted (%s): %w", c.base.Host, why, err)
	}
}
