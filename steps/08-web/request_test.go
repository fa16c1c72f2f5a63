//go:build linux

package main

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"
)

// FuzzEnding: where a request ends, for us and for net/http. Whatever comes in whichever pieces: if net/http is
// content with a request, and reads it to its end, then that is where it ends for us too. What comes behind a request
// with two lengths, or with one that its version does not have, we do not believe.
func FuzzEnding(f *testing.F) {
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\nHost: x\n\nGET / HTTP/1.1\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello, and more",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello, and more",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\nhello, and more",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nand more",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n05 ;a=b\r\nhello\r\nA\r\n0123456789\r\n000;c\r\nA: b\r\n\r\nand more",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\nA: b\nC: d\n\nE: f\r\n\r\nand more",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\nA: b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc",
		"PUT / HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
		"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\nabc",
		"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n \r\n\r\nabc",
	} {
		f.Add([]byte(request), byte(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, piece byte) {
		ours, known := endWhole(in, int(piece)+1)
		theirs, r := endByNetHTTP(in)
		lower := bytes.ToLower(in)
		wrong := bytes.Contains(lower, []byte("transfer-encoding")) && (bytes.Contains(lower, []byte("content-length")) || r != nil && !r.ProtoAtLeast(1, 1))
		if r != nil && (known && ours != theirs || !known && !wrong) {
			t.Errorf("net/http: %d; ours: %d, %v; of %q", theirs, ours, known, in)
		}
	})
}

// endWhole returns where a request ends that comes in pieces, and whether another may follow.
func endWhole(stream []byte, piece int) (end int, known bool) {
	var in []byte
	e, begun := ending{}, false
	for {
		if !begun {
			e, begun = endOf(in)
		}
		for n := 1; begun && n > 0; {
			n = e.own(in)
			in, end = in[n:], end+n
			e.left -= int64(n)
			if e.clear() {
				return end, true
			}
			if e.then == unclear {
				return end, false
			}
		}
		if len(stream) == 0 {
			return end, false
		}
		n := min(piece, len(stream), bufferSize-len(in))
		in, stream = append(in, stream[:n]...), stream[n:]
	}
}

// endByNetHTTP returns where net/http sees the end, and the request, or nil if it has a complaint.
func endByNetHTTP(in []byte) (end int, r *http.Request) {
	all := bytes.NewReader(in)
	read := bufio.NewReaderSize(all, 64<<10)
	r, err := http.ReadRequest(read)
	if err != nil || r.ProtoMajor > 1 { // the server says 505
		return 0, nil
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return 0, nil
	}
	return len(in) - all.Len() - read.Buffered(), r
}

// TestEnding: the same, for each way in which these come in two pieces.
func TestEnding(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, row := range []struct {
		request, more string
		known         bool
	}{
		{get, get, true},
		{"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", get, true},
		{"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nA: b\r\n\r\n", get, true},
		{"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", get, false},
		{"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", get, false},
		{"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", get, false},
		{"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", get, false},
	} {
		for piece := range len(row.request) + len(row.more) {
			end, known := endWhole([]byte(row.request+row.more), piece+1)
			if known != row.known || known && end != len(row.request) {
				t.Fatalf("pieces of %d: the end is %d (%v) of %q", piece+1, end, known, row.request)
			}
		}
	}
}
