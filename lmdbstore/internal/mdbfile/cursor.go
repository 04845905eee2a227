package mdbfile

// Cursor steps through the pairs of a database in key order. Use it like a
// bufio.Scanner:
//
//	for c.Next() {
//		… c.Key(), c.ValueLen() …
//		value, err := c.Value()
//	}
//	if err := c.Err(); err != nil …
//
// It checks what it reads as it goes (bounds, order, and at the end the count):
// damage is an error that wraps ErrDamaged. It is not safe for concurrent use.
type Cursor struct {
}

// Next steps to the next pair. It returns false at the end and after an error.
func (c *Cursor) Next() bool { panic("unwritten") }

// Key returns the pair's key, which is valid until the next call of Next.
func (c *Cursor) Key() []byte { panic("unwritten") }

// ValueLen returns the length of the pair's value, and reads nothing.
func (c *Cursor) ValueLen() int { panic("unwritten") }

// Value returns the pair's value, which is valid until the next call of Next.
// A value in overflow pages is read here, not before. An error also ends the
// iteration and is what Err returns.
func (c *Cursor) Value() ([]byte, error) { panic("unwritten") }

// Err returns the error that ended the iteration, or nil.
func (c *Cursor) Err() error { panic("unwritten") }
