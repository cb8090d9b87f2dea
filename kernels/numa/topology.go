package numa

import (
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
)

// A Node is a group of CPUs with memory of its own.
type Node struct {
	// ID is the system's number of the node. IDs may have gaps.
	ID int
	// CPUs lists one thread of every core first, ascending, then their siblings. A
	// node of memory only has none.
	CPUs []int
	// Cores is the number of cores: CPUs[:Cores] are the first threads.
	Cores int
	// Distance[i] is the relative cost to reach the memory of Topology.Nodes[i]; 10
	// is local. It is nil if the system does not say.
	Distance []int
	// MemBytes is the memory of the node, 0 if unknown.
	MemBytes uint64
}

// Topology lists the nodes of a machine, ascending by ID. There is at least one.
type Topology struct {
	Nodes []Node
	// Source says where this comes from: "sysfs", or why it is a guess.
	Source string
}

// Read describes this machine. If the system does not tell, the result is one
// node with all CPUs, and Source says why.
func Read() Topology {
	t, err := ReadFS(os.DirFS("/sys"))
	if err != nil {
		return single(err.Error())
	}
	return t
}

func single(why string) Topology {
	cpus := Affinity()
	if len(cpus) == 0 {
		for c := range runtime.NumCPU() {
			cpus = append(cpus, c)
		}
	}
	return Topology{Nodes: []Node{{CPUs: cpus, Cores: len(cpus)}}, Source: "one node assumed: " + why}
}

// ReadFS reads the topology below sys, a file system like Linux's /sys.
func ReadFS(sys fs.FS) (Topology, error) {
	const root = "devices/system/node"
	online, err := readList(sys, root+"/online")
	if err != nil {
		return Topology{}, err
	}
	if len(online) == 0 {
		return Topology{}, fmt.Errorf("numa: %s/online lists no node", root)
	}
	t := Topology{Source: "sysfs"}
	for _, id := range online {
		dir := fmt.Sprintf("%s/node%d", root, id)
		cpus, err := readList(sys, dir+"/cpulist")
		if err != nil {
			return Topology{}, err
		}
		n := Node{ID: id}
		n.CPUs, n.Cores = coresFirst(sys, cpus)
		n.Distance = readDistance(sys, dir+"/distance", len(online))
		n.MemBytes = readMemTotal(sys, dir+"/meminfo")
		t.Nodes = append(t.Nodes, n)
	}
	return t, nil
}

// coresFirst orders cpus so that the first thread of each core comes before the
// second of any, and counts the first threads.
func coresFirst(sys fs.FS, cpus []int) (ordered []int, cores int) {
	rank := make(map[int]int, len(cpus))
	for _, c := range cpus {
		siblings, err := readList(sys, fmt.Sprintf("devices/system/cpu/cpu%d/topology/thread_siblings_list", c))
		if err == nil {
			rank[c] = sort.SearchInts(siblings, c)
		}
		if rank[c] == 0 {
			cores++
		}
	}
	sort.SliceStable(cpus, func(i, j int) bool { return rank[cpus[i]] < rank[cpus[j]] })
	return cpus, cores
}

// Order lists the CPUs this process may use: node by node the first threads of
// the cores, then node by node their siblings.
func (t Topology) Order() []int {
	allowed := map[int]bool{}
	for _, c := range Affinity() {
		allowed[c] = true
	}
	return t.order(allowed)
}

// order is Order for the given CPUs; none allowed means all.
func (t Topology) order(allowed map[int]bool) []int {
	var first, second []int
	for _, n := range t.Nodes {
		for i, c := range n.CPUs {
			switch {
			case len(allowed) > 0 && !allowed[c]:
			case i < n.Cores:
				first = append(first, c)
			default:
				second = append(second, c)
			}
		}
	}
	return append(first, second...)
}

// NodeOf is the index in Nodes of the node that has cpu, or 0 if none has.
func (t Topology) NodeOf(cpu int) int {
	for i, n := range t.Nodes {
		for _, c := range n.CPUs {
			if c == cpu {
				return i
			}
		}
	}
	return 0
}

// CPUs is the number of CPUs this process may use by its affinity mask.
func CPUs() int {
	if n := len(Affinity()); n > 0 {
		return n
	}
	return runtime.NumCPU()
}

func readList(sys fs.FS, name string) ([]int, error) {
	b, err := fs.ReadFile(sys, name)
	if err != nil {
		return nil, fmt.Errorf("numa: %w", err)
	}
	l, err := ParseList(string(b))
	if err != nil {
		return nil, fmt.Errorf("numa: %s: %w", name, err)
	}
	return l, nil
}

// ParseList parses the kernel's form of a set of CPUs or nodes, "0-3,8,10-11",
// into ascending numbers.
func ParseList(s string) ([]int, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, nil
	}
	const limit = 1 << 16 // far above any machine; bounds what a bad file can ask for
	var l []int
	for _, part := range strings.Split(s, ",") {
		a, b, isRange := strings.Cut(part, "-")
		if !isRange {
			b = a
		}
		lo, err1 := strconv.ParseUint(a, 10, 32)
		hi, err2 := strconv.ParseUint(b, 10, 32)
		if err1 != nil || err2 != nil || lo > hi || hi >= limit {
			return nil, fmt.Errorf("bad list %q: want numbers and ranges below %d, like 0-3,8", s, limit)
		}
		for n := lo; n <= hi; n++ {
			l = append(l, int(n))
		}
	}
	return sorted(l), nil
}

func readDistance(sys fs.FS, name string, nodes int) []int {
	b, err := fs.ReadFile(sys, name)
	if err != nil {
		return nil
	}
	f := strings.Fields(string(b))
	if len(f) != nodes {
		return nil
	}
	d := make([]int, nodes)
	for i := range f {
		if d[i], err = strconv.Atoi(f[i]); err != nil {
			return nil
		}
	}
	return d
}

// readMemTotal reads the line "Node 0 MemTotal:  131791024 kB".
func readMemTotal(sys fs.FS, name string) uint64 {
	b, err := fs.ReadFile(sys, name)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		_, rest, ok := strings.Cut(line, "MemTotal:") // behind "Node 0" in the file of a node
		if f := strings.Fields(rest); ok && len(f) > 0 {
			kb, err := strconv.ParseUint(f[0], 10, 50)
			if err != nil {
				return 0
			}
			return kb << 10
		}
	}
	return 0
}

// sorted returns a sorted copy without duplicates.
func sorted(list []int) []int {
	s := append([]int(nil), list...)
	sort.Ints(s)
	n := 0
	for i, c := range s {
		if i == 0 || c != s[i-1] {
			s[n] = c
			n++
		}
	}
	return s[:n]
}
