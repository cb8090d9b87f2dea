package numa

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// machine builds a tree like /sys: nodes × cores, with siblings numbered after all
// first threads, as x86 does.
func machine(ids []int, cores, threads int) fstest.MapFS {
	fs := fstest.MapFS{}
	put := func(name, text string) { fs["devices/system/"+name] = &fstest.MapFile{Data: []byte(text)} }
	var online []string
	total := len(ids) * cores
	for i, id := range ids {
		online = append(online, fmt.Sprint(id))
		var list, dist []string
		for th := range threads {
			lo := th*total + i*cores
			list = append(list, fmt.Sprintf("%d-%d", lo, lo+cores-1))
			for c := range cores {
				var sib []string
				for s := range threads {
					sib = append(sib, fmt.Sprint(s*total+i*cores+c))
				}
				put(fmt.Sprintf("cpu/cpu%d/topology/thread_siblings_list", lo+c), strings.Join(sib, ",")+"\n")
			}
		}
		for j := range ids {
			dist = append(dist, fmt.Sprint(10+11*min(1, abs(i-j))))
		}
		put(fmt.Sprintf("node/node%d/cpulist", id), strings.Join(list, ",")+"\n")
		put(fmt.Sprintf("node/node%d/distance", id), strings.Join(dist, " ")+"\n")
		put(fmt.Sprintf("node/node%d/meminfo", id), fmt.Sprintf("Node %d MemTotal:  1024 kB\nNode %d MemFree: 1 kB\n", id, id))
	}
	put("node/online", strings.Join(online, ",")+"\n")
	return fs
}

func abs(x int) int { return max(x, -x) }

func TestTopologyOfFakeMachines(t *testing.T) {
	tests := []struct {
		name           string
		ids            []int
		cores, threads int
		order          []int
	}{
		{"desktop", []int{0}, 4, 2, []int{0, 1, 2, 3, 4, 5, 6, 7}},
		{"two sockets", []int{0, 1}, 2, 1, []int{0, 1, 2, 3}},
		{"two sockets, SMT", []int{0, 1}, 2, 2, []int{0, 1, 2, 3, 4, 5, 6, 7}},
		{"gap in the numbers", []int{0, 2, 5}, 1, 1, []int{0, 1, 2}},
		{"eight nodes", []int{0, 1, 2, 3, 4, 5, 6, 7}, 3, 2, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			topo, err := ReadFS(machine(tt.ids, tt.cores, tt.threads))
			require.NoError(t, err)
			require.Equal(t, "sysfs", topo.Source)
			require.Equal(t, tt.ids, topo.ids())
			for i, n := range topo.Nodes {
				require.Len(t, n.CPUs, tt.cores*tt.threads)
				require.Len(t, n.Distance, len(tt.ids))
				require.Equal(t, 10, n.Distance[i])
				require.EqualValues(t, 1<<20, n.MemBytes)
				for _, c := range n.CPUs {
					require.Equal(t, i, topo.NodeOf(c))
				}
			}
			order := topo.order(nil)
			require.Len(t, order, len(tt.ids)*tt.cores*tt.threads)
			for _, c := range order[:len(tt.ids)*tt.cores] {
				require.Less(t, c, len(tt.ids)*tt.cores, "first threads come first")
			}
			if tt.order != nil {
				require.Equal(t, tt.order, order)
			}
			require.Equal(t, []int{order[1%len(order)]}, topo.order(map[int]bool{order[1%len(order)]: true}))
		})
	}
}

// Siblings next to each other, as some firmware numbers them, and a node of
// memory only.
func TestSiblingsAndMemoryOnlyNode(t *testing.T) {
	fs := fstest.MapFS{
		"devices/system/node/online":        {Data: []byte("0-1\n")},
		"devices/system/node/node0/cpulist": {Data: []byte("0-3\n")},
		"devices/system/node/node1/cpulist": {Data: []byte("\n")},
	}
	for c, s := range []string{"0-1", "0-1", "2-3", "2-3"} {
		fs[fmt.Sprintf("devices/system/cpu/cpu%d/topology/thread_siblings_list", c)] = &fstest.MapFile{Data: []byte(s)}
	}
	topo, err := ReadFS(fs)
	require.NoError(t, err)
	require.Equal(t, []int{0, 2, 1, 3}, topo.order(nil))
	require.Empty(t, topo.Nodes[1].CPUs)
	require.Nil(t, topo.Nodes[0].Distance)
}

func TestTopologyOfBrokenTrees(t *testing.T) {
	for name, fs := range map[string]fstest.MapFS{
		"nothing":    {},
		"no node":    {"devices/system/node/online": {Data: []byte("\n")}},
		"bad online": {"devices/system/node/online": {Data: []byte("0-x\n")}},
		"no cpulist": {"devices/system/node/online": {Data: []byte("0\n")}},
		"huge range": {"devices/system/node/online": {Data: []byte("0-4000000000\n")}},
	} {
		_, err := ReadFS(fs)
		require.ErrorContains(t, err, "numa: ", name)
	}
	require.NotEmpty(t, single("test").Nodes[0].CPUs)
}

func TestParseList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := sorted(rapid.SliceOfN(rapid.IntRange(0, 300), 0, 40).Draw(t, "list"))
		var s []string
		for _, n := range want {
			s = append(s, fmt.Sprint(n))
		}
		got, err := ParseList(strings.Join(s, ",") + "\n")
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("got %v, %v; want %v", got, err, want)
		}
	})
	got, err := ParseList("0-3,8,10-11,2")
	require.NoError(t, err)
	require.Equal(t, []int{0, 1, 2, 3, 8, 10, 11}, got)
	for _, bad := range []string{"x", "3-1", "1-", "-1", "1,,2", "99999999999"} {
		_, err := ParseList(bad)
		require.Error(t, err, bad)
	}
}

func TestThisMachine(t *testing.T) {
	topo := Read()
	require.NotEmpty(t, topo.Nodes)
	order := topo.Order()
	require.Len(t, order, CPUs())
	if runtime.GOOS != "linux" {
		t.Skip("threads are not bound on " + runtime.GOOS)
	}
	require.Subset(t, Affinity(), order)
	done := make(chan struct{})
	go func() { // ends locked, so its thread ends with it
		defer close(done)
		before := Affinity()
		for _, cpu := range order {
			old, err := Bind(cpu)
			if err != nil {
				t.Error(err)
				return
			}
			if got := CurrentCPU(); got != cpu {
				t.Errorf("on CPU %d, bound to %d", got, cpu)
			}
			Unbind(old)
			if got := Affinity(); len(got) != len(before) {
				t.Errorf("affinity %v after Unbind, was %v", got, before)
			}
			if err := PinThread(cpu); err != nil || len(Affinity()) != 1 {
				t.Errorf("pinned to %v: %v", Affinity(), err)
			}
			if err := SetAffinity(before); err != nil {
				t.Error(err)
			}
		}
	}()
	<-done
	require.ErrorContains(t, SetAffinity([]int{-1}), "no CPU -1")
	require.ErrorContains(t, PinThread(maxCPU), "no CPU 1024")
}

func TestQuota(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	tests := []struct {
		name string
		fs   fstest.MapFS
		want float64
	}{
		{"none", fstest.MapFS{}, 0},
		{"v2 unlimited", fstest.MapFS{"proc/self/cgroup": file("0::/a\n"), "sys/fs/cgroup/a/cpu.max": file("max 100000\n")}, 0},
		{"v2 half", fstest.MapFS{"proc/self/cgroup": file("0::/a\n"), "sys/fs/cgroup/a/cpu.max": file("50000 100000\n")}, 0.5},
		{"v2 parent is smaller", fstest.MapFS{"proc/self/cgroup": file("0::/a/b\n"),
			"sys/fs/cgroup/a/b/cpu.max": file("800000 100000\n"), "sys/fs/cgroup/a/cpu.max": file("300000 100000\n")}, 3},
		{"v1", fstest.MapFS{"proc/self/cgroup": file("4:cpu,cpuacct:/x\n2:memory:/x\n"),
			"sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": file("200000\n"), "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": file("100000\n")}, 2},
		{"v1 unlimited", fstest.MapFS{"proc/self/cgroup": file("4:cpu:/\n"),
			"sys/fs/cgroup/cpu/cpu.cfs_quota_us": file("-1\n"), "sys/fs/cgroup/cpu/cpu.cfs_period_us": file("100000\n")}, 0},
		{"nonsense", fstest.MapFS{"proc/self/cgroup": file("0::/a\n::\nx\n"), "sys/fs/cgroup/a/cpu.max": file("a b c\n")}, 0},
	}
	for _, tt := range tests {
		require.InDelta(t, tt.want, QuotaFS(tt.fs), 1e-9, tt.name)
	}
	require.GreaterOrEqual(t, Quota(), 0.0)
}

func TestMemoryLimit(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for _, tt := range []struct {
		name string
		fs   fstest.MapFS
		want uint64
	}{
		{"nothing known", fstest.MapFS{}, 0},
		{"v2 unlimited", fstest.MapFS{"proc/self/cgroup": file("0::/a\n"), "sys/fs/cgroup/a/memory.max": file("max\n")}, 0},
		{"the machine's", fstest.MapFS{"proc/self/cgroup": file("0::/a\n"), "sys/fs/cgroup/a/memory.max": file("9000\n"),
			"proc/meminfo": file("MemTotal:       7 kB\nMemFree:  1 kB\n")}, 7 << 10},
		{"v2, the parent's is smaller", fstest.MapFS{"proc/self/cgroup": file("0::/a/b\n"),
			"sys/fs/cgroup/a/b/memory.max": file("8000\n"), "sys/fs/cgroup/a/memory.max": file("3000\n")}, 3000},
		{"v1", fstest.MapFS{"proc/self/cgroup": file("4:cpu:/y\n2:memory:/x\n"), "sys/fs/cgroup/memory/x/memory.limit_in_bytes": file("5000\n")}, 5000},
		{"v1 unlimited", fstest.MapFS{"proc/self/cgroup": file("2:memory:/x\n"),
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": file("9223372036854771712\n")}, 0},
		{"nonsense", fstest.MapFS{"proc/self/cgroup": file("0::/a\n"), "sys/fs/cgroup/a/memory.max": file("-5\n")}, 0},
	} {
		require.Equal(t, tt.want, MemoryLimitFS(tt.fs), tt.name)
	}
	if runtime.GOOS == "linux" {
		require.Greater(t, MemoryLimit(), uint64(1<<20))
	}
}

func TestParseMaps(t *testing.T) {
	maps, err := ParseMaps(strings.NewReader(
		"5603c093a000 default file=/usr/bin/head mapped=2 N0=2 kernelpagesize_kB=4\n" +
			"7f0000000000 interleave:0-1 anon=4 dirty=4 N0=2 N1=2 kernelpagesize_kB=2048\n"))
	require.NoError(t, err)
	require.Equal(t, []Mapping{
		{Start: 0x5603c093a000, Policy: "default", File: "/usr/bin/head", Pages: map[int]int{0: 2}, PageKB: 4},
		{Start: 0x7f0000000000, Policy: "interleave:0-1", Pages: map[int]int{0: 2, 1: 2}, PageKB: 2048},
	}, maps)
	for _, bad := range []string{"zz default", "1000", "\n"} {
		_, err := ParseMaps(strings.NewReader(bad))
		require.ErrorContains(t, err, "line 1", bad)
	}
}

func Example() {
	m, err := Alloc(4<<20, Any, true)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Free() //nolint:errcheck // an unmap of a whole mapping
	copy(m.Bytes(), "weights")
	fmt.Println(string(m.Bytes()[:7]), len(m.Bytes()))
	// Output: weights 4194304
}
