#!/usr/bin/env bash
# run.sh [REPORT]: checks and measures the CUDA kernels on this machine's GPU. It needs the
# driver, NVRTC (of the CUDA toolkit, or of a Python package; NANOCHAT_CUDA_LIB_DIR names
# its directory) and the files that build.sh has put beside it; no Go, no network.
set -uo pipefail
cd "$(dirname "$0")"
report=${1:-report.txt}
export NANOCHAT_TEST_GPU=1 XDG_CACHE_HOME=$PWD/cache
if [ -z "${NANOCHAT_CUDA_LIB_DIR:-}" ]; then
	found=$(python3 -c 'import importlib.util as u; print(":".join(p for n in ("nvidia",) for s in [u.find_spec(n)] if s for p in s.submodule_search_locations))' 2>/dev/null)
	NANOCHAT_CUDA_LIB_DIR=$(for d in ${found//:/ }; do ls -d "$d"/*/lib; done 2>/dev/null | paste -sd:)
	export NANOCHAT_CUDA_LIB_DIR
fi
failed=0
step() {
	echo "== $1"
	shift
	if "$@"; then echo "ok"; else
		echo "FAILED: $*"
		failed=1
	fi
}
same() {
	./nanochat generate nano-5m-rust.gguf 'fn main() {' -n 200 -t 0.8 --seed 1 --device cpu >cpu.txt &&
		./nanochat generate nano-5m-rust.gguf 'fn main() {' -n 200 -t 0.8 --seed 1 --device cuda -u >cuda.txt &&
		cmp cpu.txt cuda.txt
}
sanitizer() {
	if ! command -v compute-sanitizer >/dev/null; then
		echo "compute-sanitizer is not here: not run"
		return 0
	fi
	compute-sanitizer --error-exitcode 1 ./kernels-cuda.test -test.run 'Bits|Gather'
}
{
	step 'machine' ./nanochat doctor
	step 'kernels give the bits of the reference' ./kernels-cuda.test -test.run 'Bits|Graph|Gather' -test.v
	step 'a step gives the bits of the processor' ./core-model.test -test.run GPU -test.v
	step 'an engine gives the tokens of the processor' ./core-infer.test -test.run OnGPU -test.v
	step 'the same text on both' same
	step 'compute-sanitizer' sanitizer
	step 'speed' ./kernels-cuda.test -test.run Speed -test.v
	if [ $failed = 0 ]; then echo "all passed"; else echo "some failed"; fi
} 2>&1 | tee "$report"
tail -n 1 "$report" | grep -q '^all passed'
