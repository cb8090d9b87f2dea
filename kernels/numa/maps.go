package numa

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// A Mapping is one line of /proc/PID/numa_maps: a range of addresses with one
// memory policy.
type Mapping struct {
	// Start is the first address.
	Start uint64
	// Policy is the system's name of the policy, such as "default",
	// "prefer:0" or "interleave:0-1".
	Policy string
	// File is the mapped file, empty for anonymous memory.
	File string
	// Pages[n] is the number of pages on node n, in units of PageKB.
	Pages map[int]int
	// PageKB is the size of a page in KiB.
	PageKB int
}

// Maps reads the mappings of this process, ascending by address.
func Maps() ([]Mapping, error) {
	f, err := os.Open("/proc/self/numa_maps")
	if err != nil {
		return nil, fmt.Errorf("numa: %w", err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	return ParseMaps(f)
}

// ParseMaps reads text in the form of /proc/PID/numa_maps.
func ParseMaps(r io.Reader) ([]Mapping, error) {
	var maps []Mapping
	s := bufio.NewScanner(r)
	for line := 1; s.Scan(); line++ {
		f := strings.Fields(s.Text())
		if len(f) < 2 {
			return nil, fmt.Errorf("numa: numa_maps line %d: %q: want an address and a policy", line, s.Text())
		}
		start, err := strconv.ParseUint(f[0], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("numa: numa_maps line %d: address %q is not hexadecimal", line, f[0])
		}
		m := Mapping{Start: start, Policy: f[1], Pages: map[int]int{}, PageKB: os.Getpagesize() >> 10}
		for _, word := range f[2:] {
			key, value, _ := strings.Cut(word, "=")
			n, err := strconv.Atoi(value)
			switch {
			case key == "file":
				m.File = value
			case key == "kernelpagesize_kB" && err == nil:
				m.PageKB = n
			case len(key) > 1 && key[0] == 'N' && err == nil:
				if node, err := strconv.Atoi(key[1:]); err == nil {
					m.Pages[node] = n
				}
			}
		}
		maps = append(maps, m)
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("numa: numa_maps: %w", err)
	}
	return maps, nil
}

// Find is the mapping in maps that b begins in: the last that starts at or below.
func Find(maps []Mapping, b []byte) (Mapping, bool) {
	addr := addressOf(b)
	for i := len(maps) - 1; i >= 0; i-- {
		if maps[i].Start <= addr {
			return maps[i], true
		}
	}
	return Mapping{}, false
}
