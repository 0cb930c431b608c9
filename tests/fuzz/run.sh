#!/usr/bin/env bash
# Fuzzes the parsers of outside data, each for TIME seconds: run.sh TIME [TARGET...]
#
# The layout is cargo-fuzz's, but a stable compiler does: RUSTC_BOOTSTRAP lets it take the flags of libFuzzer's coverage
# and of AddressSanitizer. Inputs that were worth keeping stay in corpus/, those that failed in artifacts/; a failure is
# repeated with `run.sh 0 TARGET artifacts/TARGET/FILE`.
set -euo pipefail
cd "$(dirname "$0")"
time=${1:-60}
shift || true
target=x86_64-unknown-linux-gnu
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="${FUZZ_TARGET_DIR:-$PWD/target}"
export RUSTFLAGS="-Ctarget-cpu=x86-64-v3 -Zsanitizer=address --cfg fuzzing -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
all=$(sed -n 's/^name = "\([a-z0-9]*\)"$/\1/p' Cargo.toml)
if [ -n "${1:-}" ]; then
    grep -qx "$1" <<< "$all" || { echo "fuzz: there is no target $1; there are:" $all >&2; exit 2; }
    targets=$1
    shift
else
    targets=$all
fi
cargo build --release --locked --target "$target" --bins
mkdir -p corpus/gguf corpus/tokenizer
# Small models of the tests are good beginnings.
for file in ../../inference/tests/data/architectures/*.gguf; do
    for name in gguf tokenizer; do [ -e "corpus/$name/$(basename "$file")" ] || cp "$file" "corpus/$name/"; done
done
for name in $targets; do
    mkdir -p "corpus/$name" "artifacts/$name"
    echo "fuzz: $name"
    if [ $# -gt 0 ]; then
        "$CARGO_TARGET_DIR/$target/release/$name" "$@"
    else
        "$CARGO_TARGET_DIR/$target/release/$name" -max_total_time="$time" -timeout=10 -rss_limit_mb=2048 -max_len=65536 \
            -print_final_stats=1 -artifact_prefix="artifacts/$name/" "corpus/$name"
    fi
done
