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
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"time"
)

// handshakeTime is how long a client may take to shake hands.
const handshakeTime = 30 * time.Second

// handshake shakes hands with a client, as config (not nil) says but for what settings changes, and returns the
// session and its secrets. c has then been read exactly up to the handshake's end. It stays the caller's,
// and after an error can only be closed: the client did not come to an end within handshakeTime
// (os.ErrDeadlineExceeded), or speaks no TLS 1.3.
func handshake(c net.Conn, config *tls.Config) (*tls.Conn, *secrets, error) {
	s := &secrets{}
	r := &records{Conn: c}
	t := tls.Server(r, s.settings(config))
	c.SetDeadline(time.Now().Add(handshakeTime))
	if err := t.Handshake(); err != nil {
		return nil, nil, fmt.Errorf("handshake: %w", err)
	}
	c.SetDeadline(time.Time{})
	r.over = true
	s.suite = suites[t.ConnectionState().CipherSuite]
	return t, s, nil
}

// settings returns a copy of config for this session: TLS 1.3 and nothing else, no session tickets, and
// its KeyLogWriter is ours. A ticket would be a record after the handshake. Without any, the first record
// that either side sends is data.
func (s *secrets) settings(config *tls.Config) *tls.Config {
	config = config.Clone()
	config.MinVersion = tls.VersionTLS13
	config.SessionTicketsDisabled = true
	config.KeyLogWriter = (*keyLog)(s)
	if choose := config.GetConfigForClient; choose != nil {
		config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if chosen != nil { // it stands in for config
				chosen = s.settings(chosen)
			}
			return chosen, err
		}
	}
	return config
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
// there is, and what it had read ahead would not be in the socket any more. Whoever reads after the
// handshake is crypto/tls again, for good, and may have all.
type records struct {
	net.Conn
	header []byte // of the record being read, as far as that has come: type, version, length
	rest   int    // bytes of its body that are still to come
	over   bool   // the handshake is
}

func (r *records) Read(b []byte) (int, error) {
	if r.over {
		n, err := r.Conn.Read(b)
		if errors.Is(err, io.EOF) { // crypto/tls would take it for a good end
			err = errTruncated
		}
		return n, err
	}
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

// newConfig has a certificate that nobody vouches for: a client has to be told not to ask.
func newConfig() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}}}, err
}
