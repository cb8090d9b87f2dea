package capi

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
)

const (
	levelDebug = slog.LevelDebug
	levelInfo  = slog.LevelInfo
	levelError = slog.LevelError
)

// levelOf reads the name of a level.
func levelOf(name string) (slog.Level, error) {
	switch strings.ToLower(name) {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%.40q is no level: debug, info, warn, error", name)
}

// hub hands lines of the log to the jobs that nanochat_log_open has opened. Without
// one nothing is written at all.
type hub struct {
	mu   sync.RWMutex
	jobs map[*job]slog.Level
}

var logs hub

// write makes a line of a message and pairs of names and values.
func (h *hub) write(level slog.Level, message string, pairs ...any) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var line []byte
	for j, least := range h.jobs {
		if level < least {
			continue
		}
		if line == nil {
			var b bytes.Buffer
			slog.New(slog.NewJSONHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})).
				Log(context.Background(), level, message, append([]any{"type", "log"}, pairs...)...)
			line = bytes.TrimSuffix(b.Bytes(), []byte("\n"))
		}
		j.add(record{text: line})
	}
}

// openLog gives a job that ends only when it is cancelled or closed. An empty level is
// that of the settings.
func openLog(level string, getenv environment) (uintptr, error) {
	hint := ""
	if level == "" {
		level, hint = getenv("NANOCHAT_LOG"), "NANOCHAT_LOG or the setting log says so"
	}
	if level == "" {
		level = "info"
	}
	least, err := levelOf(level)
	if err != nil {
		return 0, invalid(err.Error(), hint)
	}
	j := newJob()
	logs.add(j, least)
	context.AfterFunc(j.ctx, func() {
		logs.remove(j)
		j.end(nil, 0, context.Cause(j.ctx))
		close(j.done)
	})
	return handles.add(kindJob, j, nil), nil
}

func (h *hub) add(j *job, least slog.Level) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.jobs == nil {
		h.jobs = map[*job]slog.Level{}
	}
	h.jobs[j] = least
}

func (h *hub) remove(j *job) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.jobs, j)
}
