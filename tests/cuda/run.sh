#!/usr/bin/env bash
# run.sh [REPORT]: checks and measures everything that uses the GPU of this machine. It needs the
# driver and the files that build.sh has put beside it; no Go, no network. Trainings need
# cuBLASLt: of the CUDA toolkit, or of a Python package (PyTorch has it); NANOCHAT_CUDA_LIB_DIR
# names its directory if it is in neither place. PyTorch and compute-sanitizer are used if they
# are here.
#
# NANOCHAT_CUDA_OFF=hopper,early leaves out what only Hopper has, if it is in doubt.
# ONLY chooses steps by a pattern (ONLY='speed|losses'). SEED is the seed of the tests' random
# inputs, which the report names; it is another one each time.
set -uo pipefail
cd "$(dirname "$0")"
report=${1:-report.txt}
export NANOCHAT_TEST_GPU=1 NANOCHAT_TEST_SEED=${SEED:-$(date +%s)} XDG_CACHE_HOME=$PWD/cache NANOCHAT_CUDA_KERNELS=${NANOCHAT_CUDA_KERNELS-$PWD/kernels}
python=$(command -v python3 || true)
if [ -z "${NANOCHAT_CUDA_LIB_DIR:-}" ] && [ -n "$python" ]; then
	NANOCHAT_CUDA_LIB_DIR=$("$python" -c '
import glob, importlib.util as u
s = u.find_spec("nvidia")
print(":".join(d for p in (s.submodule_search_locations if s else []) for d in sorted(glob.glob(p + "/*/lib"))))' 2>/dev/null)
	export NANOCHAT_CUDA_LIB_DIR
fi
missing=$(./nanochat doctor --json | sed -n 's/^ *"missing": "\(.*\)",*$/\1/p')
if [ -n "$missing" ]; then
	echo "run.sh: $missing: nothing can be checked here" >&2
	exit 1
fi
failed=()
step() {
	local name=$1
	shift
	if [ -n "${ONLY:-}" ] && ! [[ $name =~ $ONLY ]]; then return; fi
	local from=$SECONDS
	echo "== $name"
	if "$@"; then echo "ok, $((SECONDS - from)) s"; else
		echo "FAILED: $*"
		failed+=("$name")
	fi
}
same() {
	for model in nano-5m-rust nano-125m; do
		./nanochat generate $model.gguf 'fn main() {' -n 200 -t 0.8 --seed 1 --device cpu >cpu.txt &&
			./nanochat generate $model.gguf 'fn main() {' -n 200 -t 0.8 --seed 1 --device cuda -u >cuda.txt &&
			cmp cpu.txt cuda.txt || return
	done
}
sanitizer() {
	if ! command -v compute-sanitizer >/dev/null; then
		echo 'compute-sanitizer is not here: not run'
		return 0
	fi
	for tool in memcheck racecheck; do
		compute-sanitizer --tool $tool --error-exitcode 1 ./kernels-cuda.test -test.short -test.skip 'Speed|Compile|Code' || return
	done
	compute-sanitizer --error-exitcode 1 ./core-model.test -test.run 'GPUTrainGradients|GPUTrainBits|GPUMixing' -test.short
}
sdpa() {
	./kernels-cuda.test -test.run FlashSpeed -test.v || return
	if [ -n "$python" ] && "$python" -c 'import torch' 2>/dev/null; then "$python" sdpa.py; else echo 'PyTorch is not here: not compared'; fi
}
training() {
	./nanochat train train.toml --dry-run --set data.path=losses/data --set model.vocab=1024 --set data.tokenizer=losses/tokenizer.json --device cuda
}
[ -e nano-125m.gguf ] || ./nanochat init nano-125m nano-125m.gguf --seed 1 >/dev/null
{
	echo "seed of random inputs: $NANOCHAT_TEST_SEED"
	step 'machine' ./nanochat doctor
	step 'kernels' ./kernels-cuda.test -test.v -test.skip Speed
	step 'sums over devices' ./core-collective.test
	step 'optimizers' ./core-optim.test -test.run GPU
	step 'network: generation and training' ./core-model.test -test.run GPU
	step 'engine: tokens of the processor' ./core-infer.test -test.run OnGPU
	step 'the same text on both' same
	step 'losses of 200 steps' ./losses.sh run
	step 'trainer' ./core-train.test -test.run GPU
	step 'compute-sanitizer' sanitizer
	step 'speed of kernels' ./kernels-cuda.test -test.run 'Speed$' -test.skip FlashSpeed -test.v
	step 'speed of an update' ./core-optim.test -test.run Speed -test.v
	step 'speed of attention' sdpa
	step 'speed of decoding' ./nanochat benchmark nano-125m.gguf --device cuda
	step 'speed and memory of training' training
	if [ ${#failed[@]} = 0 ]; then echo 'all passed'; else printf 'failed: %s\n' "${failed[*]}"; fi
} 2>&1 | tee "$report"
tail -n 1 "$report" | grep -q '^all passed'
