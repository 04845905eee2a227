package fleet

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/qs-peer/qs-peer/internal/ca"
	"github.com/qs-peer/qs-peer/internal/trust"
)

// defaultColo is where a node is that is not told.
const defaultColo = "default"

// security is what a fleet over TLS has.
type security struct {
	authority *ca.Authority
	client    *ca.Issued // reads and writes
	operator  *ca.Issued // has snapshots published
	reads     *trust.Credentials
	operates  *trust.Credentials
}

// UseTLS has the nodes that are started from now on speak mutual TLS with
// certificates by a, below whose directory they are put. It is called before the
// first start.
func (f *Fleet) UseTLS(a *ca.Authority) error {
	f.tls = &security{authority: a}
	for _, c := range []struct {
		role   trust.Role
		issued **ca.Issued
		creds  **trust.Credentials
	}{
		{trust.RoleClientWrite, &f.tls.client, &f.tls.reads},
		{trust.RoleOperator, &f.tls.operator, &f.tls.operates},
	} {
		var err error
		if *c.creds, *c.issued, err = f.somebody(c.role, "fleet"); err != nil {
			return err
		}
	}
	return nil
}

// Credentials returns those of somebody who is no node of the fleet and talks to
// them all the same; nil without TLS.
func (f *Fleet) Credentials(role trust.Role, name string) (*trust.Credentials, error) {
	if f.tls == nil {
		return nil, nil
	}
	creds, _, err := f.somebody(role, name)
	return creds, err
}

func (f *Fleet) somebody(role trust.Role, name string) (*trust.Credentials, *ca.Issued, error) {
	a := f.tls.authority
	issued, err := a.Issue(ca.Request{Role: role, Colo: defaultColo, Name: name, Out: filepath.Join(a.Dir(), string(role)), NewKey: true})
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of %s: %w", name, err)
	}
	creds, err := trust.Open(trust.Options{Files: issued.Files})
	return creds, issued, err
}

// Client returns what a client has that may read and write; nil without TLS.
func (f *Fleet) Client() *ca.Issued {
	if f.tls == nil {
		return nil
	}
	return f.tls.client
}

// Operator returns what somebody has that may have snapshots published; nil without
// TLS.
func (f *Fleet) Operator() *ca.Issued {
	if f.tls == nil {
		return nil
	}
	return f.tls.operator
}

// Enrol makes sure that a node has a certificate of the fleet's authority; Start
// does so, too. It does nothing without TLS.
func (f *Fleet) Enrol(role, name, colo string) error {
	if f.tls == nil {
		return nil
	}
	f.mu.Lock()
	_, done := f.enrolled[enrolment{role, name, colo}]
	f.mu.Unlock()
	if done {
		return nil
	}
	a := f.tls.authority
	issued, err := a.Issue(ca.Request{Role: trust.Role(role), Colo: colo, Name: name, Out: filepath.Join(a.Dir(), "nodes", name), NewKey: true,
		Hosts: append(slices.Clone(ca.DefaultHosts), f.Home(name).Addr().String())})
	if err != nil {
		return fmt.Errorf("enrol %s: %w", name, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.enrolled[enrolment{role, name, colo}] = issued
	return nil
}

// enrolment is who has a certificate.
type enrolment struct{ role, name, colo string }

// tlsArgs returns the flags of a node over TLS, none without.
func (f *Fleet) tlsArgs(role, name string, extra []string) ([]string, error) {
	if f.tls == nil {
		return nil, nil
	}
	colo := defaultColo
	for i, arg := range extra {
		if arg == "--colo" && i+1 < len(extra) {
			colo = extra[i+1]
		}
	}
	if err := f.Enrol(role, name, colo); err != nil {
		return nil, err
	}
	f.mu.Lock()
	issued := f.enrolled[enrolment{role, name, colo}]
	f.mu.Unlock()
	args := []string{"--tls-ca", issued.Files.CA, "--tls-cert", issued.Files.Cert, "--tls-key", issued.Files.Key}
	// Which may have come with a manager that was enrolled after this node.
	if trusted := filepath.Join(issued.Dir, "trusted-keys"); exists(trusted) {
		args = append(args, "--trusted-keys", trusted)
	}
	if issued.SigningKey != "" {
		args = append(args, "--signing-key", issued.SigningKey)
	}
	return args, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// transport returns how nodes at a place are talked to: with a certificate, if there
// is TLS, and only if it is that node that answers.
func transport(at Place, creds *trust.Credentials, name string) *http.Transport {
	// No compression: it would cost the node processor time that is measured.
	t := &http.Transport{DialContext: at.Dial, DisableCompression: true}
	if creds != nil {
		t.TLSClientConfig = creds.ClientConfig(trust.Want(name, trust.NodeRoles()...))
	}
	return t
}
