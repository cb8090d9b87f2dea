#!/usr/bin/env bash
# build.sh DIR: what run.sh needs, in DIR: the programs of the tests, nanochat, compiled kernels, a
# model, a small training. Build it on any x86-64 machine with Go, a C compiler and NVRTC
# (requirements-dev.txt has its package); the machine with the GPU needs none of them.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(realpath -m "${1:?usage: tests/cuda/build.sh DIR}")
mkdir -p "$out"
for package in kernels/cuda core/collective core/optim core/model core/infer core/train; do
	go test -c -trimpath -ldflags '-s -w' -o "$out/$(echo $package | tr / -).test" "./$package"
done
go build -trimpath -ldflags '-s -w' -o "$out/nanochat" ./cmd/nanochat
cp models/nano-5m-rust/nano-5m-rust.gguf tests/cuda/{run.sh,losses.sh,sdpa.py} models/nano-125m-rust/train.toml "$out"
tests/cuda/losses.sh prepare "$out"
VIRTUAL_ENV=${VIRTUAL_ENV:-$PWD/.venv} "$out/nanochat" doctor --compile-kernels "$out/kernels" --arch sm_80,sm_90a,sm_100
tar -C "$out" -czf "$out.tar.gz" .
echo "built $out and $out.tar.gz: copy it to the machine with the GPU and run run.sh there"
