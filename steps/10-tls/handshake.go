//go:build linux

package main

// The handshake of TLS 1.3, by crypto/tls (RFC 8446), in such a way that another can go on after it. To
// copy: this file, ktls.go and socket.go. It promises that afterwards the socket's next byte is the
// first of a record of the session, and that this record, like the next one sent, has number 0.

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"time"
)

// handshakeTime is how long a client may take to shake hands.
const handshakeTime = 30 * time.Second

// handshake shakes hands with a client, and returns the session and its secrets. c has then been read
// exactly up to the handshake's end. It stays the caller's, and after an error can only be closed:
// the client did not come to an end within handshakeTime (os.ErrDeadlineExceeded), or speaks no TLS 1.3.
func handshake(c net.Conn, config *tls.Config) (*tls.Conn, *secrets, error) {
	s := &secrets{}
	config = config.Clone()
	config.KeyLogWriter = (*keyLog)(s)
	t := tls.Server(&records{Conn: c}, config)
	c.SetDeadline(time.Now().Add(handshakeTime))
	if err := t.Handshake(); err != nil {
		return nil, nil, fmt.Errorf("handshake: %w", err)
	}
	c.SetDeadline(time.Time{})
	s.suite = suites[t.ConnectionState().CipherSuite]
	return t, s, nil
}

// keyLog catches the two secrets in what crypto/tls writes for Wireshark: LABEL RANDOM SECRET, in hex.
type keyLog secrets

func (k *keyLog) Write(line []byte) (int, error) {
	fields := bytes.Fields(line)
	secret, err := hex.AppendDecode(nil, fields[len(fields)-1])
	switch string(fields[0]) {
	case "CLIENT_TRAFFIC_SECRET_0":
		k.client = secret
	case "SERVER_TRAFFIC_SECRET_0":
		k.server = secret
	}
	return len(line), err
}

// records hands out no byte beyond the record that its reader has begun: crypto/tls asks for as much as
// there is, and what it had read ahead would not be in the socket any more.
type records struct {
	net.Conn
	header []byte // of the record being read, as far as that has come: type, version, length
	rest   int    // bytes of its body that are still to come
}

func (r *records) Read(b []byte) (int, error) {
	const headerSize = 5 // RFC 8446, section 5.1
	if r.rest > 0 {
		n, err := r.Conn.Read(b[:min(len(b), r.rest)])
		r.rest -= n
		return n, err
	}
	n, err := r.Conn.Read(b[:min(len(b), headerSize-len(r.header))])
	r.header = append(r.header, b[:n]...)
	if len(r.header) == headerSize {
		r.rest = int(binary.BigEndian.Uint16(r.header[3:]))
		r.header = r.header[:0]
	}
	return n, err
}

// newConfig is for TLS 1.3 and nothing else, with a certificate that nobody vouches for: a client has
// to be told not to ask. A session ticket would be a record after the handshake. Without any, the first
// record that either side sends is data.
func newConfig() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	return &tls.Config{
		Certificates:           []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}},
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
	}, err
}
