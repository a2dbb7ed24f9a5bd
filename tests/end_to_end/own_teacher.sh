#!/usr/bin/env bash
# From a teacher in plain PyTorch to a student in onnxruntime: a network that is none of ssdkd's own is trained on Fashion-MNIST, traced,
# distilled on two ranks into WRN-16-1 without any data and with the test images to measure by, exported to ONNX and run.
# docs/teachers.md tells the same step by step. About ten minutes on two cores; needs a Python with torch, numpy and onnxruntime.
#
#   PYTHON=python3 tests/end_to_end/own_teacher.sh [FOLDER]
#
# Variables: SSDKD (target/release/ssdkd), DATA (folder of Fashion-MNIST's four files; Debian's dataset-fashion-mnist).
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
SSDKD=${SSDKD:-target/release/ssdkd}
DATA=${DATA:-/usr/share/datasets/fashion-mnist}
work=${1:-runs/own-teacher}
here=tests/end_to_end
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
say() { printf -- '---- %s\n' "$*"; }
die() { printf 'own_teacher: error: %s\n' "$*" >&2; exit 1; }
"$PYTHON" -c 'import torch, numpy, onnxruntime' || die "$PYTHON lacks torch, numpy or onnxruntime: name another with PYTHON=…"
[ -f "$DATA/train-images-idx3-ubyte.gz" ] || die "$DATA has no train-images-idx3-ubyte.gz: install Debian's dataset-fashion-mnist or set DATA"
mkdir -p "$work"

say "1. a teacher, in plain PyTorch"
OMP_NUM_THREADS=$(nproc) "$PYTHON" $here/own_teacher.py train "$DATA"/train-images-idx3-ubyte.gz "$DATA"/train-labels-idx1-ubyte.gz "$work"/rings.pt

say "2. traced with its batch-norms"
PYTHONPATH=$here "$PYTHON" launch/pytorch/trace_teacher.py --module own_teacher:rings --weights "$work"/rings.pt \
    --input 1 32 32 --mean 0.2860 --std 0.3530 --out "$work"/teacher.pt

distil() { # NAME [SETTINGS]
    local name=$1
    shift
    launch/mpirun.sh 2 "$SSDKD" train --config $here/own_teacher.toml --set teacher.weights="$work"/teacher.pt "$@" --run-dir "$work/$name"
}
say "3. distilled without any data: agreement with the teacher instead of accuracy"
distil none --set dataset=none
value() { "$PYTHON" -c 'import functools, json, sys; print(functools.reduce(lambda v, k: v[k], sys.argv[2].split("."), json.load(open(sys.argv[1]))))' "$@"; }
agreement=$(value "$work"/none/report.json student.agreement)

say "4. the same with the test images, which only measure"
distil images --set dataset=fashion_mnist
top1=$(value "$work"/images/report.json student.top1)

say "5. to ONNX, and run by onnxruntime on the test images"
for run in none images; do "$SSDKD" export --run-dir "$work/$run" --to onnx --out "$work/$run.onnx"; done
score() { "$PYTHON" $here/own_teacher.py score "$work/$1.onnx" "$DATA"/t10k-images-idx3-ubyte.gz "$DATA"/t10k-labels-idx1-ubyte.gz; }
onnx=$(score images)
blind=$(score none)
printf 'agreement without data   %s\nits student, onnxruntime %s\ntop-1 in ssdkd           %s\nthe same in onnxruntime  %s\n' "$agreement" "$blind" "$top1" "$onnx"
"$PYTHON" - "$agreement" "$blind" "$top1" "$onnx" <<'PY'
import sys
agreement, blind, top1, onnx = map(float, sys.argv[1:])
# onnxruntime may tell one image in a thousand differently; runs of this length reach far more than these bounds.
wrong = [text for text, holds in [
    ("onnxruntime's top-1 is not ssdkd's", abs(top1 - onnx) <= 1e-3),
    ("with and without test images are one run, and end apart", abs(blind - onnx) <= 0.02),
    ("the student has learned little", top1 > 0.6 and agreement > 0.6),
] if not holds]
sys.exit("own_teacher: error: " + "; ".join(wrong) if wrong else 0)
PY
say "holds"
