//go:build linux

package main

// What is served: the page, and the little that it needs.

import (
	_ "embed"
	"encoding/json"
	"io"
	"net/http"
	"os"

	"golang.org/x/sys/unix"
)

//go:embed page.html
var page []byte

// handler has ordinary handlers, and two that begin a mode. Nothing in an ordinary one knows of restarts.
func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(page) // fails if the client has gone
	})
	mux.HandleFunc("GET /events", serveEvents)
	mux.HandleFunc("GET /chat", serveChat)
	mux.HandleFunc("GET /who", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"pid": os.Getpid(), "generation": generation.Load(), "client": r.RemoteAddr})
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 16<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		w.Write(body)
	})
	mux.HandleFunc("POST /restart", func(w http.ResponseWriter, _ *http.Request) {
		if err := unix.Kill(os.Getpid(), unix.SIGUSR2); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	return http.NewCrossOriginProtection().Handler(mux) // no page of another site restarts this server
}
