#!/usr/bin/env bash
# build.sh DIR: what run.sh needs, in DIR: the programs of the tests, nanochat, a model. Build
# it on any x86-64 machine with Go and a C compiler; the machine with the GPU needs neither.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: tests/cuda/build.sh DIR}
mkdir -p "$out"
for package in kernels/cuda core/model core/infer; do
	go test -c -o "$out/$(echo $package | tr / -).test" "./$package"
done
go build -trimpath -o "$out/nanochat" ./cmd/nanochat
cp models/nano-5m-rust/nano-5m-rust.gguf tests/cuda/run.sh "$out"
echo "built $out: copy it to the machine with the GPU and run run.sh there"
