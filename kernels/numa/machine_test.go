package numa

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

func TestReadMachine(t *testing.T) {
	root := fstest.MapFS{}
	for name, f := range machine([]int{0, 1}, 4, 2) {
		root["sys/"+name] = f
	}
	put := func(name, text string) { root[name] = &fstest.MapFile{Data: []byte(text + "\n")} }
	put("proc/cpuinfo", "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9354\nstepping\t: 1\n\n"+
		"processor\t: 1\nmodel name\t: another\n")
	put("proc/sys/kernel/osrelease", "6.1.0")
	put("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance")
	put("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
	for i, c := range [][]string{{"1", "Data", "32K", "0-1"}, {"1", "Instruction", "32K", "0-1"}, {"2", "Unified", "1024K", "0-1"}, {"3", "Unified", "32M", "0-7"}} {
		dir := "sys/devices/system/cpu/cpu0/cache/index" + string(rune('0'+i)) + "/"
		put(dir+"level", c[0])
		put(dir+"type", c[1])
		put(dir+"size", c[2])
		put(dir+"shared_cpu_list", c[3])
	}
	m := ReadMachineFS(root)
	require.Equal(t, "AMD EPYC 9354", m.CPU)
	require.Equal(t, []string{"25", "17", "1"}, []string{m.Family, m.Model, m.Stepping})
	require.Equal(t, []Cache{{1, 32 << 10, 2}, {2, 1 << 20, 2}, {3, 32 << 20, 8}}, m.Caches)
	require.Equal(t, 8, m.Cores)
	require.Equal(t, 2, m.Nodes)
	require.Equal(t, "madvise", m.HugePages)
	require.Equal(t, "performance", m.Governor)
	require.Equal(t, "6.1.0", m.Kernel)
	require.Equal(t, 1<<20, m.CacheBytes(2, 5))
	require.Equal(t, 5, m.CacheBytes(4, 5))
	require.Equal(t, 32<<20, m.LastCache(5))
}

func TestReadMachineTellsNothing(t *testing.T) {
	m := ReadMachineFS(fstest.MapFS{})
	require.Empty(t, m.CPU)
	require.Equal(t, 1, m.Nodes)
	require.Positive(t, m.Cores)
	require.Equal(t, 7, m.LastCache(7))
}

func TestReadMachineARM(t *testing.T) {
	m := ReadMachineFS(fstest.MapFS{"proc/cpuinfo": {Data: []byte("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\nCPU revision\t: 1\n")}})
	require.True(t, strings.HasSuffix(m.CPU, "implementer 0x41 part 0xd40"), m.CPU)
}

func TestMachineOfThisTest(t *testing.T) {
	m := ReadMachine()
	require.Positive(t, m.CPUs)
	require.Positive(t, m.Cores)
}
