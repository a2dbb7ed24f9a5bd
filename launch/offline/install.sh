#!/usr/bin/env bash
# Builds ssdkd from this folder alone, without root and without any registry: ./install.sh, after unpacking what
# launch/offline/pack.sh made. Needed of the site: a C++ compiler, an MPI (mpicc, mpirun), Python 3 with pip; Rust and libclang
# unless they were packed.
#   ./install.sh          verify checksums, install libtorch from the wheels here, build target/release/ssdkd
#   ./install.sh --check  verify checksums, and that cargo finds every crate in this folder; build nothing
#   . ./env.sh            what later builds here need of the environment
set -euo pipefail
cd "$(dirname "$0")"
[ -r SHA256SUMS ] || { echo "install: error: no SHA256SUMS here: run the install.sh of an unpacked tarball" >&2; exit 2; }
echo "install: verifying $(wc -l <SHA256SUMS) files"
sha256sum --check --quiet --strict SHA256SUMS || { echo "install: error: files are damaged or missing (above): copy and unpack anew" >&2; exit 1; }
if ls wheels/libclang-*.whl >/dev/null 2>&1; then
    python3 -m pip install --quiet --no-index --no-deps --upgrade --find-links wheels --target .libclang libclang
fi
# shellcheck source=launch/offline/env.sh
. ./env.sh
if [ "${1:-}" = --check ]; then
    cargo metadata --offline --locked --format-version 1 >/dev/null
    echo "install: checksums are right, and every crate is here"
    exit
fi
read -r gpu flavour <wheels/flavour
options=(--cuda "$flavour")
# The CPU's wheels are CUDA 13's without their CUDA side: setup.sh takes them unless it is told of a GPU, or sees one.
if [ "$gpu" = no ]; then options=(--cpu); fi
SSDKD_WHEELS=$PWD/wheels launch/setup.sh "${options[@]}"
cargo build --release --offline --locked
echo "install: done: target/release/ssdkd (before building again: . ./env.sh)"
