package introspect

import (
	"fmt"

	"github.com/architehc/nanochat/core/config"
)

// Presets returns the names of the configurations that come with nanochat.
func Presets() []string { return config.Presets() }

// Config is one complete, checked configuration of a model and its training.
type Config struct {
	c        *config.Config
	settings []config.Setting
}

// Preset returns the preset of a name.
func Preset(name string) (*Config, error) { return newConfig(config.Preset(name)) }

// PresetWith returns the preset of a name with keys changed, each "key=value".
func PresetWith(name string, sets []string) (*Config, error) {
	return newConfig(config.Preset(name, sets...))
}

// ParseConfig checks a configuration in TOML. source names it in errors, which have
// its line, the key and what to do.
func ParseConfig(source, toml string) (*Config, error) {
	return newConfig(config.Parse(source, []byte(toml)))
}

func newConfig(c *config.Config, err error) (*Config, error) {
	if err != nil {
		return nil, err
	}
	return &Config{c, c.Settings()}, nil
}

// Name returns the name of the model.
func (c *Config) Name() string { return c.c.Name }

// Keys returns every key, in the order of the documentation.
func (c *Config) Keys() []string {
	keys := make([]string, len(c.settings))
	for i, s := range c.settings {
		keys[i] = s.Key
	}
	return keys
}

// Get returns the value of a key, as text.
func (c *Config) Get(key string) (string, error) {
	s, err := c.setting(key)
	return fmt.Sprint(s.Value), err
}

// Doc returns what a key means.
func (c *Config) Doc(key string) (string, error) {
	s, err := c.setting(key)
	return s.Doc, err
}

// Origin returns where the value of a key came from: a file and its line, "--set",
// "default", or what it was derived from.
func (c *Config) Origin(key string) (string, error) {
	s, err := c.setting(key)
	return s.Source, err
}

func (c *Config) setting(key string) (config.Setting, error) {
	for _, s := range c.settings {
		if s.Key == key {
			return s, nil
		}
	}
	hint := ""
	if near := config.Nearest(key, c.Keys()); near != "" {
		hint = "; did you mean " + near + "?"
	}
	return config.Setting{}, fmt.Errorf("no key %q%s", key, hint)
}

// Toml returns the configuration as a file: every key, the derived ones too.
func (c *Config) Toml() string { return c.c.TOML() }

// Weights returns the number of weights.
func (c *Config) Weights() int { return int(c.c.Model.Params().Total()) }

// TernaryWeights returns the number of weights that are -1, 0 or 1.
func (c *Config) TernaryWeights() int { return int(c.c.Model.Params().Ternary) }

// EmbeddingWeights returns the number of weights of embedding and head.
func (c *Config) EmbeddingWeights() int {
	p := c.c.Model.Params()
	return int(p.Embedding + p.Head)
}
