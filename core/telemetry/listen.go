package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Listen answers scrapes of h at http://addr/metrics until ctx ends. It returns the
// address that it listens on: that of addr, with the port it got for port 0. The error is
// that of an address that cannot be had.
func Listen(ctx context.Context, addr string, h http.Handler) (net.Addr, error) {
	var c net.ListenConfig
	l, err := c.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("telemetry: metrics: %w (choose another address, as in 127.0.0.1:9400)", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h)
	s := &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 1 << 14}
	go func() {
		defer func() { recover() }() // of net/http itself: a handler's is its own matter
		s.Serve(l)
	}()
	context.AfterFunc(ctx, func() { s.Close() })
	return l.Addr(), nil
}
