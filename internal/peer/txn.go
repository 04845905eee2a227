package peer

import (
	"bufio"
	"context"
	"io"
	"net/http"

	"github.com/qs-peer/qs-peer/txlog"
)

// maxTxnBody bounds the text of a transaction: six bytes stand for one at worst.
const maxTxnBody = 6 * maxRequest

func (a *api) postTxn(w *response, r *http.Request) {
	if err := a.writer.check(); err != nil {
		a.fail(w, r, err)
		return
	}
	inBase64, err := boolParam(r.URL.Query(), "base64")
	if err != nil {
		a.fail(w, r, err)
		return
	}
	ops, err := decodeTxn(r.Context(), http.MaxBytesReader(w, r.Body, maxTxnBody), inBase64, &w.lease)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.write(w, r, ops)
}

// decodeTxn reads {"ops":[…]} into memory of a lease.
func decodeTxn(ctx context.Context, body io.Reader, inBase64 bool, l *lease) ([]txlog.Op, error) {
	r := &txnReader{in: bufio.NewReader(body), ctx: ctx, lease: l, base64: inBase64}
	return r.transaction()
}
