package config

import (
	"embed"
	"fmt"
	"slices"
	"strings"
)

//go:embed presets/*.toml
var presetFiles embed.FS

// Presets lists the names of the configurations inside the package, in order.
func Presets() []string {
	entries, err := presetFiles.ReadDir("presets")
	if err != nil {
		return nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = strings.TrimSuffix(e.Name(), ".toml")
	}
	slices.Sort(names)
	return names
}

// Preset returns the configuration of that name with sets applied, each
// "key=value". An error is an *Error.
func Preset(name string, sets ...string) (*Config, error) {
	b, err := presetText(name)
	if err != nil {
		return nil, err
	}
	return Parse("preset "+name, b, sets...)
}

// presetText is the TOML of a preset. An error is an *Error.
func presetText(name string) ([]byte, error) {
	if !slices.Contains(Presets(), name) {
		e := &Error{What: fmt.Sprintf("there is no preset %q", name), Hint: "the presets are " + strings.Join(Presets(), ", ")}
		if near := Nearest(name, Presets()); near != "" {
			e.Hint = "did you mean " + near + "?"
		}
		return nil, e
	}
	b, err := presetFiles.ReadFile("presets/" + name + ".toml")
	if err != nil {
		return nil, &Error{What: err.Error()}
	}
	return b, nil
}
