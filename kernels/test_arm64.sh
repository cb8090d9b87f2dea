#!/bin/sh
# Builds the tests of kernels for arm64 and runs them under qemu: the NEON variants against
# the Go reference. Arguments go to the test binary, for example -test.run Ternary.
#
# Needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user (Debian's names).
set -eu
cd "$(dirname "$0")"
for tool in aarch64-linux-gnu-gcc qemu-aarch64; do
	if ! command -v "$tool" >/dev/null; then
		echo "test_arm64.sh: $tool not found; install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user" >&2
		exit 1
	fi
done
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
GOOS=linux GOARCH=arm64 CGO_ENABLED=1 CC=aarch64-linux-gnu-gcc go test -c -o "$dir/kernels.test" .
qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu max "$dir/kernels.test" -test.short "$@"
