package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/architehc/nanochat/core/server"
	"github.com/architehc/nanochat/core/telemetry"
	"github.com/architehc/nanochat/core/zoo"
)

// bundledModel is what is served if nothing is named.
const bundledModel = "nano-5m-rust"

type serveCmd struct {
	Models []string `arg:"" optional:"" name:"model" help:"Model files (.gguf) or names from nanochat list, as REF or NAME=REF; the first is the default one, the others are loaded when they are asked for (default: nano-5m-rust)."`

	Addr       string   `env:"NANOCHAT_ADDR" default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Address to listen on; port 0 takes a free one (default: ${default})."`
	UDS        string   `name:"uds" placeholder:"PATH" help:"Listen on this Unix socket instead."`
	TLSCert    string   `name:"tls-cert" placeholder:"FILE" help:"Certificate chain in PEM: HTTPS instead of HTTP."`
	TLSKey     string   `name:"tls-key" placeholder:"FILE" help:"Its private key in PEM."`
	APIKeyFile string   `name:"api-key-file" env:"NANOCHAT_API_KEY_FILE" placeholder:"FILE" help:"Ask for one of the API keys in this file, one a line; read again at SIGHUP."`
	AllowHost  []string `sep:"none" placeholder:"NAME" help:"Answer requests to this host name, besides localhost and addresses; * answers all. May be repeated."`
	CORSOrigin []string `name:"cors-origin" sep:"none" placeholder:"ORIGIN" help:"Let pages of this origin, such as https://example.org, use the server. May be repeated."`
	Page       bool     `default:"true" negatable:"" help:"Serve the chat page at / (default: on)."`

	Parallel   int           `default:"16" placeholder:"N" help:"Answers that a model computes together (default: ${default})."`
	Queue      int           `default:"256" placeholder:"N" help:"Answers that may wait besides; further requests get 429 (default: ${default})."`
	Context    size          `default:"0" placeholder:"N" help:"Positions to make room for; 0: what the model was made for (default: ${default})."`
	Speculate  int           `default:"0" placeholder:"N" help:"Guess up to N tokens ahead from the text so far; changes no token (default: ${default})."`
	Preload    bool          `help:"Load all models at the start."`
	IdleUnload time.Duration `default:"0s" placeholder:"TIME" help:"Take models out of memory that nobody used for so long, such as 10m; 0: never (default: ${default})."`

	MaxBody      size          `group:"limits" default:"1MiB" placeholder:"BYTES" help:"Bytes of a request's body (default: ${default})."`
	MaxHeader    size          `group:"limits" default:"32KiB" placeholder:"BYTES" help:"Bytes of a request's header (default: ${default})."`
	MaxDepth     int           `group:"limits" default:"32" placeholder:"N" help:"Levels of a request's JSON (default: ${default})."`
	MaxTokens    size          `group:"limits" default:"0" placeholder:"N" help:"Tokens of an answer; 0: the context (default: ${default})."`
	MaxN         int           `group:"limits" name:"max-n" default:"8" placeholder:"N" help:"Answers to one prompt (default: ${default})."`
	MaxPrompts   int           `group:"limits" default:"32" placeholder:"N" help:"Prompts, or texts to embed, in one request (default: ${default})."`
	MaxMessages  int           `group:"limits" default:"1024" placeholder:"N" help:"Messages of a conversation (default: ${default})."`
	MaxStops     int           `group:"limits" default:"4" placeholder:"N" help:"Stop texts (default: ${default})."`
	MaxStopBytes int           `group:"limits" default:"64" placeholder:"N" help:"Bytes of a stop text (default: ${default})."`
	MaxLogitBias int           `group:"limits" default:"300" placeholder:"N" help:"Entries of logit_bias (default: ${default})."`
	ReadTimeout  time.Duration `group:"limits" default:"30s" placeholder:"TIME" help:"Until a request has come (default: ${default})."`
	WriteTimeout time.Duration `group:"limits" default:"10s" placeholder:"TIME" help:"For a client to take a part of an answer (default: ${default})."`
	Timeout      time.Duration `group:"limits" default:"10m" placeholder:"TIME" help:"For a whole request, waiting included (default: ${default})."`
	Drain        time.Duration `group:"limits" default:"30s" placeholder:"TIME" help:"For what still runs at SIGTERM or Ctrl-C (default: ${default})."`

	LogLevel      string  `env:"NANOCHAT_LOG_LEVEL" enum:"debug,info,warn,error" default:"warn" help:"Lines of JSON on standard error: debug, info (one a request), warn, error (default: ${default})."`
	TraceEndpoint string  `env:"OTEL_EXPORTER_OTLP_ENDPOINT" placeholder:"URL" help:"Send OpenTelemetry traces to this OTLP/HTTP collector."`
	TraceRatio    float64 `default:"1" placeholder:"X" help:"Share of requests to trace (default: ${default})."`
	DebugAddr     string  `placeholder:"HOST:PORT" help:"Profiles of this process, for go tool pprof, on an address of their own."`
	engineFlags
	runFlags
}

// Help is the longer help text.
func (*serveCmd) Help() string {
	return "Speaks the HTTP of OpenAI's programs: point them at http://127.0.0.1:8080/v1. A chat page is at /, metrics for Prometheus at /metrics.\n\n" +
		"Prints the address on standard error when it is ready. SIGTERM and Ctrl-C end it once what runs is answered.\n\n" +
		"Ranges of the numbers in a request, on a model with a context of 512:\n\n" + limitsText()
}

// limitsText is the table of limits, a line each.
func limitsText() string {
	var b strings.Builder
	for _, l := range server.DefaultLimits.Table(512) {
		fmt.Fprintf(&b, "  %-20s %s\n", l.Name, l.Range())
	}
	return b.String()
}

// Run serves until it is told to end.
func (c *serveCmd) Run(a *app) error {
	signal.Ignore(syscall.SIGPIPE) // who reads the log may leave
	specs, err := c.specs(a)
	if err != nil {
		return err
	}
	keys, err := c.keys()
	if err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return &usageError{err.Error(), "one of debug, info, warn, error"}
	}
	run := telemetry.Attrs{RunID: telemetry.NewRunID(), Model: specs[0].Name}
	logger := telemetry.NewLogger(a.stderr, level, run)
	defer logger.Close()
	var tracer *telemetry.Tracer
	if !(c.TraceRatio >= 0 && c.TraceRatio <= 1) {
		return &usageError{fmt.Sprintf("--trace-ratio %v is outside 0 to 1", c.TraceRatio), "0.1 traces one request in ten"}
	}
	if c.TraceEndpoint != "" && c.TraceRatio > 0 {
		tracer, err = telemetry.NewTracer(telemetry.TraceOptions{Endpoint: c.TraceEndpoint, Service: "nanochat", Version: version, Run: run, Ratio: c.TraceRatio})
		if err != nil {
			return &usageError{err.Error(), "name a collector as in --trace-endpoint http://localhost:4318"}
		}
		defer tracer.Close()
	}
	set, err := c.set()
	if err != nil {
		return err
	}
	s, err := server.New(server.Options{
		Models: specs, Parallel: c.Parallel, Queue: c.Queue, IdleUnload: c.IdleUnload, Limits: c.limits(), Keys: keys,
		Hosts: c.AllowHost, Origins: c.CORSOrigin, NoPage: !c.Page, Log: logger.Logger, Tracer: tracer, Version: version,
		Metrics: telemetry.NewServing(telemetry.ServingOptions{Version: version, Kernel: set.Name, Process: true,
			Dropped: func() int64 { return logger.Dropped() + tracer.Dropped() }}),
	})
	if err != nil {
		return &usageError{strings.TrimPrefix(err.Error(), "server: "), "see nanochat serve --help"}
	}
	ln, where, err := c.listen()
	if err != nil {
		return errors.Join(err, s.Close())
	}
	return c.serve(a, s, ln, where, len(keys) > 0)
}

// serve answers requests from the first moment, and says so once the models are there.
func (c *serveCmd) serve(a *app, s *server.Server, ln net.Listener, where string, guarded bool) error {
	a.orderly.Store(true)
	a.patient.Store(true)
	ctx, stop := context.WithCancel(a.ctx)
	defer stop()
	if err := c.debug(ctx); err != nil {
		return errors.Join(err, ln.Close(), s.Close())
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	load := []string{""}
	if c.Preload {
		load = nil
		for _, m := range c.Models {
			name, _ := modelName(m)
			load = append(load, name)
		}
	}
	for _, name := range load {
		if err := s.Load(ctx, name); err != nil {
			stop()
			err = errors.Join(flagNames(err), <-served)
			if a.ctx.Err() != nil {
				return nil // it was told to end before it was ready
			}
			return err
		}
	}
	reload := make(chan os.Signal, 1)
	if c.APIKeyFile != "" { // or a terminal that is closed would not end the server
		signal.Notify(reload, syscall.SIGHUP)
		defer signal.Stop(reload)
	}
	fmt.Fprintf(a.stderr, "listening on %s\n", where)
	if tcp, ok := ln.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && !guarded {
		fmt.Fprintln(a.stderr, "warning: everybody who reaches this address may use the server; --api-key-file asks for a key")
	}
	for {
		select {
		case err := <-served:
			return err
		case <-reload:
			keys, err := c.keys()
			if err == nil {
				err = s.SetKeys(keys)
			}
			if err != nil {
				fmt.Fprintf(a.stderr, "warning: the keys stay as they were: %s\n", oneLine(err.Error()))
				continue
			}
			fmt.Fprintf(a.stderr, "%s read from %s\n", plural(len(keys), "key"), c.APIKeyFile)
		}
	}
}

// specs are the models of the command line. Files are looked for at once, names
// of the zoo when they are loaded.
func (c *serveCmd) specs(a *app) ([]server.ModelSpec, error) {
	if len(c.Models) == 0 {
		c.Models = []string{bundledModel}
	}
	o, err := c.runFlags.options(&c.engineFlags, c.Context, c.Speculate)
	if err != nil {
		return nil, err
	}
	specs := make([]server.ModelSpec, len(c.Models))
	for i, m := range c.Models {
		name, ref := modelName(m)
		path := ""
		if _, err := os.Stat(ref); i == 0 || err == nil || zoo.IsPath(ref) {
			found, err := a.find(ref)
			if err != nil {
				return nil, err
			}
			path = found.Path
		}
		specs[i] = server.ModelSpec{Name: name, Options: o, Find: func(context.Context) (string, error) {
			if path != "" {
				return path, nil
			}
			found, err := a.find(ref)
			return found.Path, err
		}}
	}
	return specs, nil
}

// modelName splits NAME=REF; a REF alone is called by its last part.
func modelName(arg string) (name, ref string) {
	if name, ref, ok := strings.Cut(arg, "="); ok && name != "" && !strings.ContainsAny(name, "/:") {
		return name, ref
	}
	name = strings.TrimPrefix(arg, "file:")
	if !zoo.IsPath(arg) {
		name, _, _ = strings.Cut(name, "@")
	}
	return strings.TrimSuffix(filepath.Base(name), ".gguf"), arg
}

func (c *serveCmd) limits() server.Limits {
	return server.Limits{
		Body: int(c.MaxBody), Header: int(c.MaxHeader), Depth: c.MaxDepth, MaxTokens: int(c.MaxTokens), N: c.MaxN, Prompts: c.MaxPrompts,
		Messages: c.MaxMessages, Stops: c.MaxStops, StopBytes: c.MaxStopBytes, Biases: c.MaxLogitBias,
		Read: c.ReadTimeout, Write: c.WriteTimeout, Request: c.Timeout, Drain: c.Drain,
	}
}

func (c *serveCmd) keys() ([]string, error) {
	if c.APIKeyFile == "" {
		return nil, nil
	}
	b, err := os.ReadFile(c.APIKeyFile)
	if err != nil {
		return nil, &hinted{fmt.Errorf("API keys: %w", err), "name a file with one key a line, readable for this user"}
	}
	keys, err := server.ParseKeys(c.APIKeyFile, b)
	if err != nil {
		return nil, &hinted{fmt.Errorf("API keys: %w", err), "write one key a line; lines that begin with # are comments"}
	}
	return keys, nil
}

// listen opens the socket; where is its address as a URL.
func (c *serveCmd) listen() (ln net.Listener, where string, err error) {
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return nil, "", &usageError{"--tls-cert and --tls-key belong together", "give both for HTTPS, none for HTTP"}
	}
	if c.UDS != "" {
		ln, err = listenUnix(c.UDS)
		where = "unix:" + c.UDS
	} else {
		ln, err = net.Listen("tcp", c.Addr)
		if err == nil {
			where = "http://" + ln.Addr().String()
		}
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && c.UDS != "":
		return nil, "", &hinted{fmt.Errorf("%s exists and is no socket", c.UDS), "choose another path, or remove the file"}
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, "", &hinted{fmt.Errorf("another program listens on %s already", c.Addr), "choose another port, as in --addr 127.0.0.1:8081; port 0 takes a free one"}
	case errors.Is(err, fs.ErrPermission):
		return nil, "", &hinted{err, "ports below 1024 are for root: choose one like 8080, or a place for the socket that you may write to"}
	case err != nil:
		return nil, "", &hinted{fmt.Errorf("cannot listen: %w", err), "write --addr as HOST:PORT, as in 127.0.0.1:8080 or [::1]:8080"}
	}
	if c.TLSCert == "" {
		return ln, where, nil
	}
	certificate, err := os.ReadFile(c.TLSCert)
	key, err2 := os.ReadFile(c.TLSKey)
	if err = errors.Join(err, err2); err == nil {
		var secure net.Listener
		if secure, err = server.TLS(ln, certificate, key); err == nil {
			return secure, strings.Replace(where, "http://", "https://", 1), nil
		}
	}
	ln.Close()
	return nil, "", &hinted{err, "both files are PEM: the certificate first, then those that signed it"}
}

// listenUnix makes a socket for this user and group. One that nobody listens on
// any more is replaced.
func listenUnix(path string) (net.Listener, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSocket != 0 {
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			conn.Close()
			return nil, &hinted{fmt.Errorf("another program listens on %s already", path), "choose another path, or end that program"}
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// debug serves the profiles until ctx is done.
func (c *serveCmd) debug(ctx context.Context) error {
	if c.DebugAddr == "" {
		return nil
	}
	ln, err := net.Listen("tcp", c.DebugAddr)
	if err != nil {
		return &hinted{fmt.Errorf("--debug-addr: %w", err), "write it as HOST:PORT, as in 127.0.0.1:6060"}
	}
	h := &http.Server{Handler: server.Debug(), ReadHeaderTimeout: 5 * time.Second}
	go h.Serve(ln) //nolint:errcheck // it ends with the program
	context.AfterFunc(ctx, func() { h.Close() })
	return nil
}
