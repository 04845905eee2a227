package peer

import (
	"strconv"
	"strings"
)

// The replies of RESP2, appended to dst. Simple strings and errors are one line.

func respSimple(dst []byte, text string) []byte {
	return respEnd(append(append(dst, '+'), oneLine.Replace(text)...))
}

func respFailure(dst []byte, text string) []byte {
	return respEnd(append(append(dst, '-'), oneLine.Replace(text)...))
}

func respInt(dst []byte, n int64) []byte { return respNumber(dst, ':', n) }

// respArray begins an array, whose n items follow.
func respArray(dst []byte, n int) []byte { return respNumber(dst, '*', int64(n)) }

func respBulk[T []byte | string](dst []byte, value T) []byte {
	return respEnd(append(respNumber(dst, '$', int64(len(value))), value...))
}

// respNull is the bulk string that is not there.
func respNull(dst []byte) []byte { return respNumber(dst, '$', -1) }

func respNumber(dst []byte, kind byte, n int64) []byte {
	return respEnd(strconv.AppendInt(append(dst, kind), n, 10))
}

func respEnd(dst []byte) []byte { return append(dst, '\r', '\n') }

var oneLine = strings.NewReplacer("\r", " ", "\n", " ")
