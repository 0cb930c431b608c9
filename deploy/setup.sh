#!/usr/bin/env bash
# Brings a Debian machine to the state in which Millrace builds, runs and tests itself.
# Every step looks first and acts only on what is missing, so a second run costs well under a second.
#
#   deploy/setup.sh system    compilers and libraries of the native parts
#   deploy/setup.sh native    RocksDB as a static library, built once and kept
#   deploy/setup.sh models    the default models, pinned by SHA-256
#   deploy/setup.sh clients   what only the tests need: a browser, Python and Node clients
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/millrace
rust_min=1.95

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$1" >&2
    printf 'setup: next step: %s\n' "$2" >&2
    exit 1
}

# One at a time: `make run` and `make test` in two terminals must not fetch into one folder together.
mkdir -p "$cache"
exec 9>"$cache/setup.lock"
if ! flock -n 9; then
    say "waiting for another set-up that is running"
    flock 9
fi

have_package() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null || true)" = installed ]; }

# Installs the named Debian packages that are missing; asks for sudo only when that is nobody's root.
need_packages() {
    local missing=() package as_root=()
    for package in "$@"; do have_package "$package" || missing+=("$package"); done
    [ ${#missing[@]} -eq 0 ] && return 0
    command -v apt-get >/dev/null ||
        die "these packages are missing and this system has no apt: ${missing[*]}" "install their equivalents by hand, then run the command again"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "missing packages: ${missing[*]}" "as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}")
    # An image may carry no package lists, or lists whose versions are gone: then refresh them once.
    if ! "${install[@]}" </dev/null >"$cache/apt.log" 2>&1; then
        "${as_root[@]}" apt-get update -q </dev/null >>"$cache/apt.log" 2>&1 || true
        "${install[@]}" </dev/null >>"$cache/apt.log" 2>&1 || {
            tail -n 5 "$cache/apt.log" >&2
            die "apt could not install ${missing[*]}" "read $cache/apt.log"
        }
    fi
}

system() {
    command -v cargo >/dev/null || die "no cargo on PATH" "install Rust $rust_min or newer, then run the command again"
    local rust
    rust=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$rust_min" "$rust" | sort -V | head -n 1)" = "$rust_min" ] ||
        die "rustc $rust is older than $rust_min" "update the Rust toolchain"
    command -v python3 >/dev/null || die "no python3 on PATH" "apt-get install python3 python3-pip"
    grep -q -w avx2 /proc/cpuinfo 2>/dev/null ||
        die "this CPU has no AVX2; the build targets x86-64-v3" "lower the target in .cargo/config.toml (rustflags and CXXFLAGS)"
    need_packages cmake g++ clang libclang-dev libopenblas-dev pkg-config curl
}

# Cargo compiles RocksDB again (half an hour on two cores) whenever anything in the dependency tree shifts a feature of
# one of its build dependencies. So its archive is built once, by its own crate and with our flags, and every later
# build links the kept one through ROCKSDB_LIB_DIR, which the Makefile exports.
native() {
    local kept=${ROCKSDB_LIB_DIR:?the Makefile names the folder} work=$cache/native/build archive
    [ -s "$kept/librocksdb.a" ] && return 0
    say "building RocksDB once into $kept (long: about 15 to 30 minutes on two cores)"
    (cd "$here" && env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC CARGO_TARGET_DIR="$work" \
        "${CARGO:-cargo}" build --release --locked -p librocksdb-sys </dev/null)
    archive=$(find "$work/release/build" -name librocksdb.a -print -quit)
    [ -n "$archive" ] || die "the build left no librocksdb.a" "run again with ROCKSDB_COMPILE=1 to build it inside cargo"
    mkdir -p "$kept"
    cp "$archive" "$kept/librocksdb.a.part"
    mv "$kept/librocksdb.a.part" "$kept/librocksdb.a"
    rm -rf "$work"
}

models() {
    python3 "$here/deploy/models.py" "${MILLRACE_MODELS:-$cache/models}"
}

clients() {
    need_packages chromium nghttp2-client openssl slowhttptest libfaketime
    python3 -c 'import ensurepip, venv' 2>/dev/null || need_packages python3-venv
    local venv=$cache/clients wanted=$here/tests/py/requirements.txt
    local stamp=$venv/.installed
    if ! cmp -s "$wanted" "$stamp"; then
        say "installing the Python test clients"
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted" </dev/null
        cp "$wanted" "$stamp"
    fi
    command -v npm >/dev/null || need_packages nodejs npm
    local node=$cache/clients/node sdks=$here/tests/js/package.json
    if ! cmp -s "$sdks" "$node/.installed"; then
        say "installing the Node test clients"
        rm -rf "$node"
        mkdir -p "$node"
        cp "$sdks" "$node/package.json"
        (cd "$node" && npm install --silent --no-audit --no-fund --no-package-lock --ignore-scripts </dev/null)
        cp "$sdks" "$node/.installed"
    fi
}

case "${1:-}" in
system | native | models | clients) "$1" ;;
*) die "usage: deploy/setup.sh system|native|models|clients" "choose one of the four" ;;
esac
