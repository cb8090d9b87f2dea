package capi

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/train"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
)

const (
	// maxConfig bounds a configuration, maxOverrides their number.
	maxConfig    = 1 << 20
	maxOverrides = 1 << 12
)

// stepRecord is a line of metrics.jsonl with what a reader of the file knows besides.
type stepRecord struct {
	Type  string  `json:"type"`
	Out   string  `json:"out"`
	Steps int     `json:"steps"`
	Left  float64 `json:"left_s"` // seconds
	*train.Metrics
}

// logRecord is a line for people.
type logRecord struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// trainedRecord is the result of a training.
type trainedRecord struct {
	Type string `json:"type"`
	Out  string `json:"out"`
	*train.Result
}

// openTraining reads a configuration and starts its training.
func openTraining(path string, overrides []string, resume string, getenv environment, version string) (uintptr, error) {
	if path == "" {
		return 0, invalid("the path of the configuration is empty", "name a .toml file")
	}
	b, err := readConfig(path)
	if err != nil {
		return 0, err
	}
	if text := getenv("NANOCHAT_THREADS"); text != "" && !slices.ContainsFunc(overrides, func(s string) bool {
		return strings.HasPrefix(strings.ReplaceAll(s, " ", ""), "train.threads=")
	}) {
		if _, err := threadsOf(text); err != nil {
			return 0, invalid(err.Error(), "NANOCHAT_THREADS or the setting threads says so")
		}
		overrides = append(overrides[:len(overrides):len(overrides)], "train.threads="+text)
	}
	cfg, err := config.Parse(path, b, overrides...)
	if err != nil {
		return 0, configFailure(err)
	}
	o := train.Options{Resume: resume, Version: version, CUDA: cuda.FromEnvironment(getenv, libraryPath())}
	if name := getenv("NANOCHAT_KERNEL"); name != "" {
		if o.Set, err = kernels.ByName(name); err != nil {
			return 0, invalid(err.Error(), "unset NANOCHAT_KERNEL and the setting kernel to use the best")
		}
	}
	return start("train "+path, true, func(ctx context.Context, j *job) (any, int32, error) {
		lines := &lineWriter{j: j}
		o.Log = lines
		o.Progress = func(p *train.Progress) {
			m := *p.Metrics
			j.tell(stepRecord{"step", cfg.Train.Out, p.Steps, p.Left.Seconds(), &m})
		}
		r, err := train.Run(ctx, cfg, o)
		lines.flush()
		result := trainedRecord{"result", cfg.Train.Out, r}
		if cause := context.Cause(ctx); cause != nil && err == cause && r != nil {
			return result, cancelled, nil
		}
		if _, is := err.(*config.Error); is {
			err = configFailure(err)
		}
		return result, finished, err
	}), nil
}

// readConfig reads a regular file of at most maxConfig bytes: others may never end.
func readConfig(path string) ([]byte, error) {
	const hint = "name a .toml file; relative paths start at the working directory of the process"
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, &failure{diskStatus(err, statusIO), err.Error(), hint}
	case !st.Mode().IsRegular() || st.Size() > maxConfig:
		return nil, invalid(fmt.Sprintf("%s is not a file of at most %d bytes", path, maxConfig), hint)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, &failure{diskStatus(err, statusIO), err.Error(), hint}
	}
	return b, nil
}

// configFailure says that a configuration is wrong: the caller wrote it.
func configFailure(err error) error {
	c, ok := err.(*config.Error)
	if !ok {
		return err
	}
	bare := *c
	bare.Hint = ""
	return invalid(bare.Error(), c.Hint)
}

// lineWriter makes records of the lines that are written to it.
type lineWriter struct {
	j    *job
	rest []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		line, rest, whole := bytes.Cut(w.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		w.j.tell(logRecord{"log", string(line)})
		w.rest = rest
	}
}

func (w *lineWriter) flush() {
	if len(w.rest) > 0 {
		w.j.tell(logRecord{"log", string(w.rest)})
		w.rest = nil
	}
}
