#!/usr/bin/env bash
# The whole of it in one command: set-up, release build, and SSD-KD on two ranks (on one where there is one GPU), into runs/demo. Arguments go to `ssdkd train`.
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup.sh
# shellcheck source=launch/common.sh
. launch/common.sh
rustup_first
cargo build --release --locked
# One rank for each GPU, as far as there are two.
ranks=2
[ "$(gpus)" != 1 ] || ranks=1
launch/mpirun.sh $ranks target/release/ssdkd train --config configs/fashion_mnist/demo.toml --run-dir runs/demo "$@"
