package numa

import (
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// A Cache is one level of the cache hierarchy as one core sees it.
type Cache struct {
	// Level is 1 to 4; the instruction cache is left out.
	Level int `json:"level"`
	// Bytes is the size of one such cache.
	Bytes int `json:"bytes"`
	// Shared is the number of CPUs that share it.
	Shared int `json:"shared"`
}

// Machine describes the hardware, for reports and for naming measurements. What
// the system does not tell is empty or 0.
type Machine struct {
	// CPU is the vendor's name of the processor.
	CPU string `json:"cpu"`
	// Family, Model and Stepping tell apart what a virtual machine calls alike
	// (x86), or are the implementer, part and revision (ARM).
	Family   string  `json:"family,omitempty"`
	Model    string  `json:"model,omitempty"`
	Stepping string  `json:"stepping,omitempty"`
	Arch     string  `json:"arch"`
	CPUs     int     `json:"cpus"`
	Cores    int     `json:"cores"`
	Nodes    int     `json:"numa_nodes"`
	MemBytes uint64  `json:"memory_bytes,omitempty"`
	Caches   []Cache `json:"caches,omitempty"`
	// Governor is the frequency policy of CPU 0, such as "performance".
	Governor string `json:"governor,omitempty"`
	// HugePages is the transparent huge page setting: always, madvise or never.
	HugePages string `json:"huge_pages,omitempty"`
	// Kernel is the release of the operating system.
	Kernel string `json:"kernel,omitempty"`
}

// ReadMachine describes this machine.
func ReadMachine() Machine { return ReadMachineFS(os.DirFS("/")) }

// ReadMachineFS describes the machine whose proc and sys stand in root.
func ReadMachineFS(root fs.FS) Machine {
	m := Machine{Arch: runtime.GOARCH, CPUs: CPUs()}
	m.readCPUInfo(root)
	t := single("")
	if sys, err := fs.Sub(root, "sys"); err == nil {
		if read, err := ReadFS(sys); err == nil {
			t = read
		}
	}
	m.Nodes = len(t.Nodes)
	for _, n := range t.Nodes {
		m.Cores += n.Cores
		m.MemBytes += n.MemBytes
	}
	if m.MemBytes == 0 {
		m.MemBytes = readMemTotal(root, "proc/meminfo")
	}
	m.Caches = readCaches(root)
	m.Governor = readLine(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
	m.Kernel = readLine(root, "proc/sys/kernel/osrelease")
	if _, rest, ok := strings.Cut(readLine(root, "sys/kernel/mm/transparent_hugepage/enabled"), "["); ok {
		m.HugePages, _, _ = strings.Cut(rest, "]")
	}
	return m
}

// readCPUInfo reads the first processor of /proc/cpuinfo.
func (m *Machine) readCPUInfo(root fs.FS) {
	b, err := fs.ReadFile(root, "proc/cpuinfo")
	if err != nil {
		return
	}
	fields := map[string]*string{
		"model name": &m.CPU, "cpu family": &m.Family, "model": &m.Model, "stepping": &m.Stepping,
		"CPU implementer": &m.Family, "CPU part": &m.Model, "CPU revision": &m.Stepping,
	}
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			break // the end of the first processor
		}
		if f := fields[strings.TrimSpace(key)]; f != nil && *f == "" {
			*f = strings.TrimSpace(value)
		}
	}
	if m.CPU == "" && m.Family != "" {
		m.CPU = fmt.Sprintf("%s implementer %s part %s", m.Arch, m.Family, m.Model)
	}
}

func readCaches(root fs.FS) []Cache {
	var caches []Cache
	for i := range 8 {
		dir := fmt.Sprintf("sys/devices/system/cpu/cpu0/cache/index%d/", i)
		level, err := strconv.Atoi(readLine(root, dir+"level"))
		if err != nil {
			break
		}
		if readLine(root, dir+"type") == "Instruction" {
			continue
		}
		size := readLine(root, dir+"size")
		unit := 1
		switch {
		case strings.HasSuffix(size, "K"):
			unit = 1 << 10
		case strings.HasSuffix(size, "M"):
			unit = 1 << 20
		}
		n, err := strconv.Atoi(strings.TrimRight(size, "KM"))
		if err != nil {
			continue
		}
		shared, _ := ParseList(readLine(root, dir+"shared_cpu_list"))
		caches = append(caches, Cache{Level: level, Bytes: n * unit, Shared: max(1, len(shared))})
	}
	return caches
}

// readLine is a file's text without the line end, "" if there is none.
func readLine(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// CacheBytes is the size of one cache of the level, or otherwise if unknown.
func (m Machine) CacheBytes(level, otherwise int) int {
	for _, c := range m.Caches {
		if c.Level == level {
			return c.Bytes
		}
	}
	return otherwise
}

// LastCache is the size of the outermost cache, or otherwise if unknown.
func (m Machine) LastCache(otherwise int) int {
	if len(m.Caches) == 0 {
		return otherwise
	}
	return m.Caches[len(m.Caches)-1].Bytes
}
