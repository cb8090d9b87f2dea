#!/bin/bash
# Makes the vocabulary and the training data of nano-125m-rust from the Rust corpus.
#
#   models/nano-125m-rust/prepare.sh CORPUS [OUT]
#
# As models/nano-5m-rust/prepare.sh, with 16,384 tokens; OUT is build/nano-125m-rust unless
# given.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
VOCAB=16384 exec "$here/../nano-5m-rust/prepare.sh" "${1:?usage: models/nano-125m-rust/prepare.sh CORPUS [OUT]}" "${2:-build/nano-125m-rust}"
