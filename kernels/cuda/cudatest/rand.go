package cudatest

import (
	"math/rand/v2"
	"strconv"
)

// SeedVariable is a number that gives tests other random inputs than the usual ones.
const SeedVariable = "NANOCHAT_TEST_SEED"

// Rand is the source of a test's random inputs: that of a and b, mixed with the number in
// SeedVariable.
func Rand(getenv func(string) string, a, b uint64) *rand.Rand {
	seed, _ := strconv.ParseUint(getenv(SeedVariable), 10, 64) // none is 0: the usual inputs
	return rand.New(rand.NewPCG(a^seed*0x9E3779B97F4A7C15, b))
}
