#!/bin/bash
# Prints what the model writes, as Markdown: fixed prompts and seeds, nothing chosen
# afterwards. The same model gives the same text on every machine. Prompts end where
# tokens do: text after "(" or a space is often one token with it.
#
#   models/nano-5m-rust/samples.sh [MODEL]
set -euo pipefail
cd "$(dirname "$0")/../.."
model=${1:-models/nano-5m-rust/nano-5m-rust.gguf}
nanochat=${NANOCHAT:-build/bin/nanochat}

# sample PROMPT FLAG...: the command and its text after the prompt.
sample() {
	local prompt=$1
	shift
	printf '`nanochat generate %s %s %s`\n\n`````rust\n' "$(basename "$model")" "${prompt@Q}" "$*"
	printf '%s' "$prompt"
	"$nanochat" generate "$model" "$prompt" "$@"
	printf '\n`````\n\n'
}

prompts=(
	'fn main() {'
	'pub fn max(a: u32, b: u32) -> u32 {'
	$'use std::collections::HashMap;\n\nfn count_words(text: &str) -> HashMap<String, usize> {'
	$'impl fmt::Display for Point {\n    fn fmt'
	$'/// Returns the number of elements in the list.\npub fn len'
	$'#[derive(Debug, Clone)]\npub struct'
	$'#[cfg(test)]\nmod tests {\n    use super::*;\n\n    #[test]\n    fn'
	$'impl Iterator for Counter {\n    type Item = u32;\n\n    fn next'
)
printf '### As it comes\n\nEight prompts at temperature 0.6, each with its number as the seed.\n\n'
for i in "${!prompts[@]}"; do
	sample "${prompts[$i]}" -n 120 -t 0.6 --seed "$((i + 1))"
done

printf '### What is hard for it\n\n'
printf 'Always the likeliest token, which tends to end in loops:\n\n'
sample 'fn main() {' -n 100 -t 0
printf 'An algorithm:\n\n'
sample $'/// Sorts the slice with quicksort.\npub fn quicksort(list: &mut [i32]) {' -n 120 -t 0.6 --seed 1
printf 'A text that is not Rust:\n\n'
sample 'The capital of France is' -n 60 -t 0.6 --seed 1
printf 'A high temperature:\n\n'
sample 'fn main() {' -n 80 -t 1.3 --seed 1
