#!/bin/bash
# Trains nano-125m-rust on a GPU, a slice at a time.
#
#   models/nano-125m-rust/train.sh [SECONDS]
#
# Without SECONDS it trains to the end. With it, it stops after that time as Ctrl-C does: the
# state after the last whole step is saved, and the same command goes on from there. The
# exit status is 0 at the end of the training and 130 at the end of a slice. NANOCHAT names
# the program, RUN the directory of the run.
#
# Between machines the run travels in parts of at most 16 MB:
#
#   nanochat checkpoint split RUN -o PARTS --size 16MB
#   nanochat checkpoint join PARTS -o RUN
set -euo pipefail
cd "$(dirname "$0")/../.."
nanochat=${NANOCHAT:-build/bin/nanochat}
run=${RUN:-build/nano-125m-rust/run}

limit=()
if [ -n "${1:-}" ]; then
	limit=(timeout --signal=INT --kill-after=60 --preserve-status "$1")
fi
"${limit[@]}" "$nanochat" train models/nano-125m-rust/train.toml --out "$run"
"$nanochat" export "$run" --best -o models/nano-125m-rust/nano-125m-rust.gguf --force
