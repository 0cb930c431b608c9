# Millrace. `make run` and `make test` start from a bare Debian machine with Rust, git, make and python3 + pip.
# Everything is built in the release profile, so that FAISS compiles once for all targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

export XDG_CACHE_HOME ?= $(HOME)/.cache
XDG_DATA_HOME ?= $(HOME)/.local/share

export MILLRACE_MODELS ?= $(XDG_CACHE_HOME)/millrace/models
export MILLRACE_CLIENTS ?= $(XDG_CACHE_HOME)/millrace/clients
DATA ?= $(XDG_DATA_HOME)/millrace

# RocksDB is built once per version and compiler flags, and linked from here by every build.
ROCKSDB_KEY := $(shell sed -n '/^name = "librocksdb-sys"/{n;s/.*"\(.*\)"/\1/p;}' Cargo.lock)-$(shell sed -n '/^CXXFLAGS/p' .cargo/config.toml | sha256sum | cut -c1-8)
export ROCKSDB_LIB_DIR ?= $(XDG_CACHE_HOME)/millrace/native/rocksdb-$(ROCKSDB_KEY)
export ROCKSDB_STATIC ?= 1

# The gate asks the same questions every time; `make test PROPTEST_RNG_SEED=$$RANDOM` asks new ones.
export PROPTEST_RNG_SEED ?= 1

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
BINARY := $(TARGET_DIR)/release/millrace
MEMBERS := proto inference storage agent dataplane loadtest bench bench-storage tests

# `make test ONLY=telegram` and `make figures ONLY=skeleton.decode` run a part; ARGS reaches `millrace serve`.
ONLY ?=
ARGS ?=

# Seconds for each target of `make fuzz`.
TIME ?= 60

.PHONY: help setup setup-test build run test fuzz sanitize figures fmt lint doc clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "%-18s %s\n", $$1, $$2 }'

setup: ## install what is missing to build and run: packages, default models
	@deploy/setup.sh system
	@deploy/setup.sh native
	@deploy/setup.sh models

setup-test: setup ## and what only the tests need: a browser, Python and Node clients
	@deploy/setup.sh clients

build: setup ## build the product in release mode
	@$(CARGO) build --release --locked --workspace --bins

run: build ## install, build, fetch models, start on loopback
	@exec "$(BINARY)" serve --data "$(DATA)" --models "$(MILLRACE_MODELS)" $(ARGS)

# The real binary is built before the tests that start it. Doc tests run first, so that the count of
# the main run is the last thing printed.
test: setup-test ## all tests of all crates, against real models and real clients
	@$(CARGO) build --release --locked --workspace --bins
	@$(CARGO) test --release --locked --workspace --doc --quiet
	@export MILLRACE_BIN="$(BINARY)"; \
	if command -v cargo-nextest >/dev/null; then \
	    exec $(CARGO) nextest run --release --locked --workspace --no-fail-fast $(ONLY); \
	else \
	    exec $(CARGO) test --release --locked --workspace --lib --bins --tests --no-fail-fast -- --test-threads=2 $(ONLY); \
	fi

fuzz: ## random input for the parsers of outside data (ONLY=gguf for one of them, TIME=60 seconds each)
	@exec tests/fuzz/run.sh "$(TIME)" $(ONLY)

# AddressSanitizer comes with the compiler but is not offered by a stable one, hence RUSTC_BOOTSTRAP. A target folder of
# its own keeps the product's builds. Models are left out: the modules with unsafe code are tested on small ones.
sanitize: ## the tests of the modules with unsafe code under AddressSanitizer
	@RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Ctarget-cpu=x86-64-v3 -Zsanitizer=address" CARGO_TARGET_DIR="$(TARGET_DIR)/sanitize" \
	    $(CARGO) test --release --locked --target x86_64-unknown-linux-gnu -p millrace-inference --lib -- \
	    --test-threads=2 $(or $(ONLY),kernel kv:: backend gguf encoder model)

figures: setup-test ## measure; one JSON line per figure (ONLY=prefix for a part)
	@$(CARGO) build --release --locked --workspace --bins
	@MILLRACE_BIN="$(BINARY)" exec "$(MILLRACE_CLIENTS)/bin/python" bench/figures/run.py --only "$(ONLY)"

fmt: ## format the sources
	@$(CARGO) fmt --all

lint: ## what must hold before a merge: format, clippy without warnings
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings

doc: ## build the documentation; a warning is an error
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps

clean: ## remove what was built of this workspace; the native libraries stay (they take long)
	@$(CARGO) clean --release --locked $(addprefix -p millrace-,$(MEMBERS))
