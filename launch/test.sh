#!/usr/bin/env bash
# Set-up and every check a change has to pass. Skipped tests print why.
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup.sh --tests
# shellcheck source=launch/common.sh
. launch/common.sh
rustup_first
cargo fmt --check
# One profile for all: libtorch's C++ bindings are then compiled once.
cargo clippy --release --locked --all-targets -- -D warnings
# onnxruntime, where setup could install it for this Python; a Python of the user's own brings its own.
[ -n "${SSDKD_TEST_PYTHON:-}" ] || export PYTHONPATH="$PWD/.test-python${PYTHONPATH:+:$PYTHONPATH}"
# Tests start more ranks than most machines have GPUs; launch/gpu_check.sh asks what GPUs do.
[ ! -e /dev/nvidiactl ] || export SSDKD__DEVICE="${SSDKD__DEVICE:-cpu}"
cargo test --release --locked -- --show-output
