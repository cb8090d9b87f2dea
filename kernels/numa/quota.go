package numa

import (
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// Quota is the number of CPUs' worth of time that the control group of this
// process may use, 0 if unlimited or unknown.
func Quota() float64 { return QuotaFS(os.DirFS("/")) }

// QuotaFS is Quota on a file system like Linux's root, with proc and sys/fs/cgroup.
// The smallest limit on the way to the root of the hierarchy counts.
func QuotaFS(root fs.FS) float64 {
	least := 0.0
	groups(root, "cpu", func(dir string, v2 bool) {
		q := 0.0
		if v2 {
			q = quotaV2(root, path.Join(dir, "cpu.max"))
		} else {
			q = quotaV1(root, dir)
		}
		if q > 0 && (least == 0 || q < least) {
			least = q
		}
	})
	return least
}

// MemoryLimit is the bytes of memory that this process may have: the machine's, or
// those of its control group; 0 if unknown. Swap is not counted.
func MemoryLimit() uint64 { return MemoryLimitFS(os.DirFS("/")) }

// MemoryLimitFS is MemoryLimit on a file system like Linux's root.
func MemoryLimitFS(root fs.FS) uint64 {
	least := ReadMachineFS(root).MemBytes
	groups(root, "memory", func(dir string, v2 bool) {
		name := "memory.limit_in_bytes"
		if v2 {
			name = "memory.max"
		}
		b, err := fs.ReadFile(root, path.Join(dir, name))
		if err != nil {
			return
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
		if err == nil && n > 0 && n < 1<<62 && (least == 0 || n < least) { // without a limit: "max", or about 2^63
			least = n
		}
	})
	return least
}

// groups calls f with the directories of this process's control groups with a
// controller, up to the root of each hierarchy.
func groups(root fs.FS, controller string, f func(dir string, v2 bool)) {
	b, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3) // id:controllers:path
		if len(parts) != 3 {
			continue
		}
		for dir := path.Clean("/" + parts[2]); ; dir = path.Dir(dir) {
			switch {
			case parts[1] == "":
				f(path.Join("sys/fs/cgroup", dir), true)
			case hasController(parts[1], controller):
				f(path.Join("sys/fs/cgroup", controller, dir), false)
			}
			if dir == "/" {
				break
			}
		}
	}
}

func hasController(list, name string) bool {
	for c := range strings.SplitSeq(list, ",") {
		if c == name {
			return true
		}
	}
	return false
}

// quotaV2 reads "max 100000" or "150000 100000": microseconds per period.
func quotaV2(root fs.FS, name string) float64 {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return 0
	}
	return ratio(f[0], f[1])
}

func quotaV1(root fs.FS, dir string) float64 {
	quota, err1 := fs.ReadFile(root, path.Join(dir, "cpu.cfs_quota_us"))
	period, err2 := fs.ReadFile(root, path.Join(dir, "cpu.cfs_period_us"))
	if err1 != nil || err2 != nil {
		return 0
	}
	return ratio(strings.TrimSpace(string(quota)), strings.TrimSpace(string(period)))
}

// ratio is quota/period, 0 if either is not a positive number.
func ratio(quota, period string) float64 {
	q, err1 := strconv.ParseInt(quota, 10, 64)
	p, err2 := strconv.ParseInt(period, 10, 64)
	if err1 != nil || err2 != nil || q <= 0 || p <= 0 {
		return 0
	}
	return float64(q) / float64(p)
}
