package mdbfile

// Stat counts what a database consists of.
type Stat struct {
	Entries       uint64
	Depth         int // levels; 0 when empty
	BranchPages   uint64
	LeafPages     uint64
	OverflowPages uint64
}

// Planner lays out an environment file from keys and value lengths. The zero
// value is ready to use. After an error it only returns that error.
type Planner struct {
}

// DB begins the next database. Names are 1 to MaxKey bytes and ascend.
func (p *Planner) DB(name string) error { panic("unwritten") }

// Add adds the next pair of the current database: keys are 1 to MaxKey bytes
// and ascend strictly, values are at most MaxValue bytes. The key is not kept.
func (p *Planner) Add(key []byte, valueLen int) error { panic("unwritten") }

// Plan ends the pass. There must be a database.
func (p *Planner) Plan() (*Plan, error) { panic("unwritten") }

// Plan is the layout of an environment file. It may be used for any number of
// Writers.
type Plan struct {
}

// Size returns the file's exact length in bytes.
func (p *Plan) Size() int64 { panic("unwritten") }

// Stat returns the counts of a database; ok is false when there is none of
// that name.
func (p *Plan) Stat(name string) (stat Stat, ok bool) { panic("unwritten") }
