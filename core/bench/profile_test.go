package bench

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels"
)

// The parts of a profile add up to the step, and counts are exact.
func TestProfile(t *testing.T) {
	o := ProfileOptions{Threads: 2, Prompt: 20, Decode: 4, Open: func(set *kernels.Set) (*model.Model, func() error, error) {
		m, err := model.Init(t.Context(), tinyConfig(), 1, model.Options{Set: set})
		return m, func() error { return nil }, err
	}}
	ps, err := MeasureProfile(t.Context(), o)
	require.NoError(t, err)
	require.Len(t, ps, 2)
	require.Equal(t, "prefill", ps[0].Name)
	require.Equal(t, 20, ps[1].Position)
	for _, p := range ps {
		sum := 0.0
		calls := map[string]float64{}
		for _, op := range p.Ops {
			sum += op.Microseconds
			calls[op.Op] = op.Calls
		}
		require.InEpsilon(t, p.Microseconds, sum, 0.01)
		require.Positive(t, calls["attention"])
		require.Positive(t, calls["activation"])
		var b strings.Builder
		profileTable(p).text(&b)
		require.Contains(t, b.String(), "between kernels")
	}
	require.Positive(t, ps[1].Ops[0].Calls)

	why := errors.New("closed")
	_, err = MeasureProfile(t.Context(), ProfileOptions{Open: func(*kernels.Set) (*model.Model, func() error, error) { return nil, nil, why }})
	require.ErrorIs(t, err, why)
}

// TestProfileOfFile prints the profile of a file, and with NANOCHAT_PROFILE_DOC writes
// it into the marked part of that document:
//
//	NANOCHAT_PROFILE=$PWD/model.gguf go test ./core/bench -run ProfileOfFile -v
func TestProfileOfFile(t *testing.T) {
	path := os.Getenv("NANOCHAT_PROFILE")
	if path == "" {
		t.Skip("NANOCHAT_PROFILE names no file")
	}
	r := &Report{}
	for _, threads := range []int{1, 2} {
		ps, err := MeasureProfile(t.Context(), ProfileOptions{Name: filepath.Base(path), Threads: threads, Open: func(set *kernels.Set) (*model.Model, func() error, error) {
			f, err := gguf.Open(path)
			if err != nil {
				return nil, nil, err
			}
			m, err := model.Load(f, model.Options{Set: set})
			return m, f.Close, err
		}})
		require.NoError(t, err)
		r.Profiles = append(r.Profiles, ps...)
	}
	for _, p := range r.Profiles {
		var b strings.Builder
		profileTable(p).text(&b)
		t.Log(b.String())
	}
	if name := os.Getenv("NANOCHAT_PROFILE_DOC"); name != "" {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		doc, err := Markdown(string(b), r)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(name, []byte(doc), 0o644))
	}
}
