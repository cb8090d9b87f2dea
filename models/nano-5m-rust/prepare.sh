#!/bin/bash
# Makes the vocabulary and the training data of nano-5m-rust from the Rust corpus.
#
#   models/nano-5m-rust/prepare.sh CORPUS [OUT]
#
# CORPUS holds rust-train-*.jsonl.zst and rust-val.jsonl.zst; OUT is
# build/nano-5m-rust unless given. EVAL names evaluation files whose text must not be
# trained on (separated by blanks), VOCAB the size of the vocabulary, NANOCHAT the program.
set -euo pipefail
cd "$(dirname "$0")/../.."
corpus=${1:?usage: models/nano-5m-rust/prepare.sh CORPUS [OUT]}
out=${2:-build/nano-5m-rust}
nanochat=${NANOCHAT:-build/bin/nanochat}

evaluation=()
for file in ${EVAL:-}; do
	evaluation+=(--decontaminate "$file")
done
if ((${#evaluation[@]} == 0)); then
	echo 'warning: EVAL is not set: the data may hold problems that models are evaluated with' >&2
fi
mkdir -p "$out"

# The vocabulary learns from training text only.
"$nanochat" tokenizer train "$corpus"/rust-train-*.jsonl.zst --vocab "${VOCAB:-4096}" --out "$out/tokenizer.json" --force
"$nanochat" data prepare "$corpus"/rust-train-*.jsonl.zst --val "$corpus/rust-val.jsonl.zst" "${evaluation[@]}" \
	--tokenizer "$out/tokenizer.json" --out "$out/data" --force
