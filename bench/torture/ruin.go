package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"github.com/qs-peer/qs-peer/internal/fleet"
)

// ruin damages the writer's own data, or all of it is lost. Nobody repairs that unasked:
// the writer has to refuse it, and to name the one command that gets it back.
type ruin struct {
	part  part
	harm  harm
	lost  bool // the whole directory
	which uint64
}

func (d *ruin) kind() string { return "writer, restored" }

func (d *ruin) String() string {
	if d.lost {
		return "loss of the writer's directory"
	}
	return fmt.Sprintf("%s of %s of the writer (%x)", d.harm, d.part, d.which)
}

func newRuin(rng *rand.Rand) *ruin {
	return &ruin{part: []part{logFile, sealedFile, storeFile}[rng.IntN(3)], harm: harms[rng.IntN(len(harms))], lost: rng.IntN(4) == 0, which: rng.Uint64()}
}

// inflict lets the followers have all first: what only the writer had is lost with it.
func (d *ruin) inflict(ctx context.Context, r *rig) (hit bool, err error) {
	r.load.quiet.Lock()
	defer r.load.quiet.Unlock()
	if err := r.settled(ctx); err != nil {
		return false, err
	}
	n := r.writer()
	n.kill()
	rng := rand.New(rand.NewPCG(d.which, 1))
	if d.lost {
		if err := n.proc.Wipe(); err != nil {
			return false, err
		}
	} else if files := d.part.files(n.data()); len(files) > 0 {
		if _, err := d.harm.do(files[rng.IntN(len(files))], rng); err != nil {
			return false, err
		}
		if sound, err := d.refused(ctx, r); sound || err != nil {
			return false, err
		}
	}
	if err := r.restore(ctx); err != nil {
		return true, err
	}
	if err := n.launch(); err != nil {
		return true, err
	}
	if err := n.up(ctx); err != nil {
		return true, err
	}
	return true, n.scrub(ctx)
}

// refused starts the writer on what was damaged. Either it refuses, and says what to do, or
// it finds that all it needs is there.
func (d *ruin) refused(ctx context.Context, r *rig) (sound bool, err error) {
	n := r.writer()
	if err := n.launch(); err != nil {
		return false, err
	}
	n.doomed.Store(true) // as it should be
	err = n.up(ctx)
	var ended *fleet.ExitError
	switch {
	case errors.As(err, &ended):
		if !strings.Contains(ended.Tail, "qs-peer restore") {
			r.violate(Violation{NoRest, n.name, time.Now(), fmt.Sprintf("after %v it does not say what to do: %s", d, ended.Tail)})
		}
		return false, nil
	case err != nil:
		return false, err
	}
	if n.scrub(ctx) == nil && n.ready(ctx) == nil {
		n.doomed.Store(false)
		return true, nil
	}
	d.takesNothing(ctx, r)
	n.kill()
	return false, nil
}

// takesNothing has a client write to the writer that found itself damaged. It has to
// refuse, and to name the command.
func (d *ruin) takesNothing(ctx context.Context, r *rig) {
	c := r.load.newClient("ruin")
	op := Op{hotKey(0), c.mark()}
	w := Write{Ops: []Op{op}, Began: time.Now()}
	asking, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	a, err := r.writer().ask(asking, r.writer().asClient, http.MethodPut, "/v1/kv/"+op.Key, string(op.Mark.Value()))
	w.Outcome = Refused
	c.did(w) // should it be in the log after all, that is seen
	if err != nil || a.code != http.StatusServiceUnavailable || !strings.Contains(string(a.body), "qs-peer restore") {
		r.violate(Violation{NoRest, r.writer().name, time.Now(), fmt.Sprintf("after %v a write is answered with %d %.300s %v, want 503 and the command", d, a.code, a.body, err)})
	}
	r.figures.add("writes that a damaged writer refused", 1)
}

// restore runs the one documented command.
func (r *rig) restore(ctx context.Context) error {
	args, err := r.fleet.Command(r.writer().proc)
	if err != nil {
		return err
	}
	args[1] = "restore"
	args = append(args, "--from", "https://"+r.nodes[1].http)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("qs-peer restore: %w: %s", err, out)
	}
	return nil
}
