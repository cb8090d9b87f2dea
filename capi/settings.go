package capi

import (
	"fmt"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/architehc/nanochat/core/zoo"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
	"github.com/architehc/nanochat/kernels/tune"
)

// variables are the settings that stand in for a variable of the environment, in
// order of the header.
var variables = []struct {
	key, variable string
	// check says what is wrong with a value that is not empty; nil: any text will do.
	check func(value string) error
}{
	{"cache", "NANOCHAT_CACHE", nil},
	{"home", "NANOCHAT_HOME", nil},
	{"models", "NANOCHAT_MODELS", nil},
	{"index", "NANOCHAT_INDEX", nil},
	{"endpoint", "NANOCHAT_ENDPOINT", checkZoo("NANOCHAT_ENDPOINT")},
	{"token", "NANOCHAT_TOKEN", nil},
	{"offline", "NANOCHAT_OFFLINE", checkZoo("NANOCHAT_OFFLINE")},
	{"threads", "NANOCHAT_THREADS", func(v string) error { _, err := threadsOf(v); return err }},
	{"kernel", "NANOCHAT_KERNEL", func(v string) error { _, err := kernels.ByName(v); return err }},
	{"device", "NANOCHAT_DEVICE", checkDevice},
	{"tune", "NANOCHAT_TUNE", func(v string) error { _, err := tune.ParseMode(v); return err }},
	{"log", "NANOCHAT_LOG", func(v string) error { _, err := levelOf(v); return err }},
}

// checkZoo lets core/zoo read a value as that of its variable.
func checkZoo(variable string) func(string) error {
	return func(value string) error {
		o, err := zoo.FromEnvironment(func(name string) string {
			if name == variable {
				return value
			}
			return ""
		}, "")
		if err == nil {
			_, err = zoo.New(o)
		}
		return err
	}
}

// threadsOf reads a number of threads.
func threadsOf(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > team.MaxSize {
		return 0, fmt.Errorf("threads is %q, not a number from 1 to %d", text, team.MaxSize)
	}
	return n, nil
}

// settings are the values that nanochat_set has set, by the variable that each
// stands in for.
type settings struct {
	mu     sync.Mutex
	values map[string]string
	// limit is the memory limit before the first change.
	limit *int64
}

var process settings

// over is env with what was set in front of it.
func (s *settings) over(env environment) environment {
	return func(name string) string {
		s.mu.Lock()
		v, set := s.values[name]
		s.mu.Unlock()
		if set {
			return v
		}
		return env(name)
	}
}

// set changes a setting; a nil value takes it back.
func (s *settings) set(key string, value *string) error {
	switch key {
	case "memory_limit":
		return s.setLimit(value)
	case "gc_percent":
		return setGC(value)
	}
	for _, v := range variables {
		if v.key != key {
			continue
		}
		if value != nil && *value != "" && v.check != nil {
			if err := v.check(*value); err != nil {
				return invalid(fmt.Sprintf("setting %s: %v", key, err), "")
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.values == nil {
			s.values = map[string]string{}
		}
		if value == nil {
			delete(s.values, v.variable)
		} else {
			s.values[v.variable] = *value
		}
		return nil
	}
	return unknownSetting(key)
}

func unknownSetting(key string) error {
	names := []string{"memory_limit", "gc_percent"}
	for _, v := range variables {
		names = append(names, v.key)
	}
	slices.Sort(names)
	return invalid(fmt.Sprintf("there is no setting %.40q", key), "settings are "+strings.Join(names, ", "))
}

func (s *settings) setLimit(value *string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limit == nil {
		first := debug.SetMemoryLimit(-1)
		s.limit = &first
	}
	n := *s.limit
	switch {
	case value == nil:
	case *value == "":
		n = math.MaxInt64
	default:
		var err error
		if n, err = strconv.ParseInt(*value, 10, 64); err != nil || n < 1<<20 {
			return invalid(fmt.Sprintf("setting memory_limit: %.40q is not a number of bytes from 1 MiB", *value), "")
		}
	}
	debug.SetMemoryLimit(n)
	return nil
}

func setGC(value *string) error {
	percent := 100
	switch {
	case value == nil:
	case *value == "off":
		percent = -1
	default:
		n, err := strconv.Atoi(*value)
		if err != nil || n < 1 || n > 1<<20 {
			return invalid(fmt.Sprintf("setting gc_percent: %.40q is neither a number from 1 nor off", *value), "")
		}
		percent = n
	}
	debug.SetGCPercent(percent)
	return nil
}

// get is the value that counts. A token is not given out.
func (s *settings) get(key string, env environment) (string, error) {
	switch key {
	case "memory_limit":
		if n := debug.SetMemoryLimit(-1); n != math.MaxInt64 {
			return strconv.FormatInt(n, 10), nil
		}
		return "", nil
	case "gc_percent":
		sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(sample)
		if n := sample[0].Value.Uint64(); n != math.MaxUint64 {
			return strconv.FormatUint(n, 10), nil
		}
		return "off", nil
	}
	for _, v := range variables {
		if v.key == key {
			value := s.over(env)(v.variable)
			if key == "token" && value != "" {
				value = "set"
			}
			return value, nil
		}
	}
	return "", unknownSetting(key)
}
