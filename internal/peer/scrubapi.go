package peer

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
)

// postScrub reads and verifies what the node holds, now. It answers once that is done.
func (a *api) postScrub(w *response, r *http.Request) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		a.fail(w, r, badRequest("query: %v", err))
		return
	}
	rate := a.scrubber.rate
	for name, values := range q {
		switch {
		case !slices.Contains([]string{"part", "rate"}, name):
			err = badRequest("unknown query parameter %q: there are part and rate", name)
		case name == "rate":
			if rate, err = strconv.ParseInt(values[0], 10, 64); err != nil || rate < 0 {
				err = badRequest("rate=%s: want bytes per second, 0 for no limit", values[0])
			}
		}
		if err != nil {
			a.fail(w, r, err)
			return
		}
	}
	report, err := a.scrubber.scrub(r.Context(), q["part"], rate)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSONBody(w, http.StatusOK, report)
}
