package torture

import (
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newRNG(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

var schedules = map[string]scheduler{"kill": killSchedule, "net": netSchedule, "damage": damageSchedule}
