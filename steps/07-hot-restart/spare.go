//go:build linux

package main

import (
	"errors"
	"os"
)

// spareFDs is how many descriptors a takeover needs: of the files with luggage, one is being taken
// while the next is being packed.
const spareFDs = 2

// spare is descriptors that are kept free for a takeover. A server that has run out of them is
// the one that most needs to be restarted.
type spare []*os.File

func (s *spare) keep() error {
	for len(*s) < spareFDs {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		*s = append(*s, f)
	}
	return nil
}

// use frees them. Nothing else must be opened meanwhile, such as by an accept loop.
func (s *spare) use() (err error) {
	for _, f := range *s {
		err = errors.Join(err, f.Close())
	}
	*s = nil
	return err
}
