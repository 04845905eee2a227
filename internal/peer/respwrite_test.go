package peer

import "testing"

func TestRESPReplies(t *testing.T) {
	for _, tt := range []struct {
		name string
		got  []byte
		want string
	}{
		{"simple string", respSimple(nil, "OK"), "+OK\r\n"},
		{"simple string of two lines", respSimple(nil, "a\r\n$1\r\nb"), "+a  $1  b\r\n"},
		{"error", respFailure(nil, "ERR no"), "-ERR no\r\n"},
		{"error that quotes a line end", respFailure(nil, "ERR 'a\r\n+OK'"), "-ERR 'a  +OK'\r\n"},
		{"integer", respInt(nil, -7), ":-7\r\n"},
		{"empty array", respArray(nil, 0), "*0\r\n"},
		{"array", respBulk(respArray(nil, 1), "x"), "*1\r\n$1\r\nx\r\n"},
		{"bytes", respBulk(nil, []byte("a\r\n\x00")), "$4\r\na\r\n\x00\r\n"},
		{"empty value", respBulk(nil, []byte{}), "$0\r\n\r\n"},
		{"no value", respNull(nil), "$-1\r\n"},
		{"behind what is there", respInt([]byte("+OK\r\n"), 1), "+OK\r\n:1\r\n"},
	} {
		if string(tt.got) != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, tt.got, tt.want)
		}
	}
}
