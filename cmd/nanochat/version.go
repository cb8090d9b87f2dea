package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is the release; commit is set by the build (-X main.commit=...).
const version = "0.1.0"

var commit string

// versionReport is what `version --json` prints.
type versionReport struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	System  string `json:"system"`
	Cgo     bool   `json:"cgo"`
}

func thisVersion() versionReport {
	v := versionReport{Version: version, Commit: commit, Go: runtime.Version(), System: runtime.GOOS + "/" + runtime.GOARCH}
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			if s.Key == "CGO_ENABLED" {
				v.Cgo = s.Value == "1"
			}
		}
	}
	return v
}

type versionCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run prints the version.
func (c *versionCmd) Run(a *app) error {
	v := thisVersion()
	if c.JSON {
		return writeJSON(a.stdout, v)
	}
	s := "nanochat " + v.Version
	if v.Commit != "" {
		s += " (" + v.Commit + ")"
	}
	_, err := fmt.Fprintf(a.stdout, "%s %s %s\n", s, v.Go, v.System)
	return err
}
