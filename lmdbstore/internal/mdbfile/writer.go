package mdbfile

import "io"

// Writer writes a planned file, front to back, without seeking. It must be fed
// the databases and pairs that the plan was made from; other lengths or counts
// are an error, at Close at the latest. After an error it only returns that
// error.
type Writer struct {
}

// NewWriter returns a Writer that writes exactly plan.Size() bytes to w, in
// large chunks.
func NewWriter(w io.Writer, plan *Plan) *Writer { panic("unwritten") }

// DB begins the next database.
func (w *Writer) DB(name string) error { panic("unwritten") }

// Add adds the next pair of the current database. Key and value are not kept.
func (w *Writer) Add(key, value []byte) error { panic("unwritten") }

// Close ends the pass and writes what is buffered. It does not close the
// underlying writer.
func (w *Writer) Close() error { panic("unwritten") }
