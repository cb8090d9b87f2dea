# Targets: `make help`. Every recipe runs with the tools of build/tools first on
# PATH; scripts/setup finds or installs them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COUNT   ?= 5000
SOAK    ?= 3m
SHIPPED := models/nano-5m-rust/nano-5m-rust.gguf
MODEL   ?= $(or $(wildcard $(SHIPPED)),build/nano-5m.gguf)
PROMPT  ?= fn main() {
CARD    ?= nano-5m-rust
RUN     ?= build/$(CARD)/run

export PATH := $(CURDIR)/build/tools:$(PATH)
# trimpath: the tests compile what the builds compile, so that the kernels are compiled once
export GOFLAGS := -mod=readonly -buildvcs=false -trimpath
export NANOCHAT_PYTHON := $(CURDIR)/.venv/bin/python
export NANOCHAT_PROMTOOL := $(CURDIR)/build/tools/promtool

# Packages with goroutines of their own, for the race detector.
RACE := ./capi ./core/chat ./core/server ./core/load ./core/infer/... ./core/internal/... ./core/gguf ./core/model \
	./core/tokenizer ./core/data ./core/optim ./core/eval ./core/zoo ./kernels/team ./kernels/tune ./kernels/numa
# Of core/train, what is arithmetic of one network for a minute.
RACE_SKIP := TestExportedModelIsTheTrainers|TestResume$$|TestPowerLoss|TestInitFrom
# What is checked under emulation: arithmetic that must give the same bits.
ARM64 := ./kernels ./core/internal/rng ./core/ternary ./core/mhc ./core/sample
# Of core/model, whose tests take minutes there: one of every kind of network.
ARM64_MODEL := TestOneAnswer/(plain|norms|softcap|whole_heads|2_streams_bvn_true)|TestGain|TestI2S|TestWithSet|TestInt8Head
ARM64_ENV := GOARCH=arm64 CGO_ENABLED=1 CC=aarch64-linux-gnu-gcc QEMU_LD_PREFIX=/usr/aarch64-linux-gnu

##@ Use
.PHONY: run
run: build $(MODEL) ## write Rust with the model in models/ (if it is not there, with random weights)
ifneq ($(MODEL),$(SHIPPED))
	@echo 'This is not the trained model of models/: if its weights are random, so is the text.'
endif
	build/bin/nanochat generate $(MODEL) '$(PROMPT)' -n 120 -t 0.8 --repeat-penalty 1.1 --seed 1 -u

$(MODEL): | build/bin/nanochat
	build/bin/nanochat init nano-5m $@ --seed 1

.PHONY: build
build: setup-build ## build/bin/nanochat, build/lib/libnanochat.{so*,a} and build/include/
	@mkdir -p build/bin
	go build -trimpath -ldflags '-s -w -X main.commit=$(VERSION)' -o build/bin/nanochat ./cmd/nanochat
	@echo 'built build/bin/nanochat ($(VERSION))'
	@scripts/build-lib --static build
	@echo 'built build/lib/libnanochat.so, build/lib/libnanochat.a and build/include/nanochat.h'

build/bin/nanochat:
	@$(MAKE) build

.PHONY: card
card: build ## write models/CARD (nano-5m-rust) from the run in RUN: the model file, its card, its loss curve
	build/bin/nanochat export $(RUN) -o models/$(CARD)/$(CARD).gguf --force
	scripts/model-card models/$(CARD) --run $(RUN)

.PHONY: examples
examples: build ## the C examples of bindings/c, in build/examples
	@mkdir -p build/examples
	for f in bindings/c/*.c; do \
		$${CC:-cc} -std=c99 -O2 -Wall -Wextra -Wpedantic -o build/examples/$$(basename $$f .c) $$f \
			-Ibuild/include -Lbuild/lib -lnanochat -Wl,-rpath,'$$ORIGIN/../lib' || exit; \
	done

##@ Check
.PHONY: test
test: setup ## everything below but bench: what CI runs
	@start=$$(date +%s); set -e; \
	scripts/stage lint            $(MAKE) -s lint; \
	scripts/stage 'unit and end-to-end tests' $(MAKE) -s unit; \
	scripts/stage 'Python package' $(MAKE) -s python; \
	scripts/stage 'without cgo'   $(MAKE) -s nocgo; \
	scripts/stage 'race detector' $(MAKE) -s race; \
	scripts/stage 'arm64 under qemu' $(MAKE) -s arm64; \
	scripts/stage 'fuzzing, $(COUNT) executions a target' $(MAKE) -s fuzz; \
	scripts/stage 'soak of the server, $(SOAK)' $(MAKE) -s soak; \
	scripts/stage 'file sizes'    $(MAKE) -s size; \
	echo; echo "all stages passed in $$(( $$(date +%s) - start )) s"

.PHONY: lint
lint: setup-lint ## gofmt, vet, staticcheck, clang-format, ruff
	@scripts/lint

.PHONY: unit
unit: build setup-python setup-ctests setup-promtool setup-nginx setup-browser ## all Go tests, with the Python references where a test has one
	go test ./...

.PHONY: python
python: build setup-python ## the Python package: types and tests
	cd python && ../.venv/bin/python -m mypy --cache-dir ../build/mypy
	cd python && ../.venv/bin/pyright
	cd python && ../.venv/bin/python -m pytest -p no:cacheprovider

.PHONY: python-matrix
python-matrix: build ## the tests of the Python package on every Python 3.10 to 3.13 found
	scripts/python-matrix

.PHONY: wheel sdist
wheel: setup-build setup-python ## the Python package with library, program and model, in dist/
	@rm -f dist/nanochat-*_$${NANOCHAT_TARGET:-$$(uname -m)}.whl
	.venv/bin/python -m pip wheel -q --no-deps --no-build-isolation -w dist ./python
	@ls -l dist/*.whl
sdist: setup-build setup-python ## the same as sources, which build without Go and a C compiler installed
	cd python && ../.venv/bin/python -m hatchling build -t sdist -d ../dist
	@ls -l dist/*.tar.gz

.PHONY: kernels
kernels: build setup-python ## compile the kernels of NVIDIA GPUs into build/share, where build/bin and build/lib find them
	VIRTUAL_ENV=$(CURDIR)/.venv build/bin/nanochat doctor --compile-kernels build/share/nanochat/cuda

.PHONY: gopy
gopy: setup-build setup-python ## the optional extension of bindings/gopy for .venv's Python, in build/gopy
	scripts/build-gopy .venv/bin/python

.PHONY: nocgo
nocgo: setup-build ## the same on the Go reference kernels, built without cgo
	@# not capi, which is cgo, nor tests, which look at the repository or the built program
	export CGO_ENABLED=0; go test -vet=off $$(go list ./... | grep -vE '/(capi|tests)(/|$$)')

.PHONY: race
race: setup-build ## packages with goroutines, under the race detector
	go test -race -vet=off $(RACE)
	go test -race -vet=off ./core/train -skip '$(RACE_SKIP)'

.PHONY: arm64
arm64: setup-build ## the ARM64 kernels and arithmetic, cross-compiled and run by qemu-user
	@scripts/setup arm64
	$(ARM64_ENV) go test -vet=off -exec qemu-aarch64 $(ARM64)
	$(ARM64_ENV) go test -vet=off -exec qemu-aarch64 ./core/model -run '$(ARM64_MODEL)'

.PHONY: fuzz
fuzz: setup-build ## every fuzz target for COUNT executions (make fuzz COUNT=10000000)
	@scripts/fuzz $(COUNT)

.PHONY: soak
soak: setup-build ## a server under load for SOAK (make soak SOAK=1h): memory, files, goroutines
	@scripts/soak $(SOAK) 5ms

.PHONY: size
size: ## lines per directory; fails on a file of more than 600
	@scripts/size

.PHONY: fmt
fmt: setup-lint ## format Go, C and Python
	gofmt -w $$(git ls-files '*.go')
	git ls-files -z '*.c' '*.h' | xargs -0r .venv/bin/clang-format -i
	.venv/bin/ruff format -q . && .venv/bin/ruff check -q --fix .

.PHONY: bench
bench: build ## measure machine, kernels and models; writes the tables of docs/PERFORMANCE.md
	scripts/bench

.PHONY: reliability
reliability: setup-build ## kill 20 trainings and more; writes the table of docs/RELIABILITY.md
	@scripts/reliability

##@ Set up
.PHONY: setup setup-build setup-python setup-lint setup-ctests setup-promtool setup-nginx setup-browser
setup: ## find or install everything the tests use
	@scripts/setup go cc python lint arm64 ctests promtool nginx browser
setup-build:
	@scripts/setup go cc
setup-python:
	@scripts/setup python
setup-ctests:
	@scripts/setup ctests
setup-promtool:
	@scripts/setup promtool
setup-nginx:
	@scripts/setup nginx
setup-lint:
	@scripts/setup go cc python lint
setup-browser:
	@scripts/setup browser

.PHONY: clean
clean: ## remove what was built; keep the tools
	find build -mindepth 1 -maxdepth 1 ! -name tools -exec rm -rf {} +

.PHONY: distclean
distclean: ## remove build/ and .venv/
	rm -rf build .venv

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-zA-Z0-9_-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
