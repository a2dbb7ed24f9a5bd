#!/usr/bin/env bash
# Everything about GPUs that a machine without one cannot prove, in one command; any machine with a GPU will do.
#
#   launch/gpu_check.sh [FOLDER]       report and logs go to FOLDER (gpu_check); exit code 0 when every check has passed
#   launch/gpu_check.sh --help
#
# Transports between ranks (two ranks share a GPU where there is one only), every network's numbers against PyTorch's, logits against
# the CPU's, the same run twice, on one rank and on two, every network and method trained for a moment with deterministic kernels only,
# the demo, and the step benchmark. Not timed on a GPU yet. Runs from a checkout (builds first) and from what launch/bundle.sh packs.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in -h | --help) sed -n '2,9s/^# \{0,1\}//p' launch/gpu_check.sh; exit 0 ;; esac
die() { printf 'gpu_check: error: %s\n' "$*" >&2; exit 2; }
# SSDKD_CHECK_DEVICE=cpu tries the script itself where there is no GPU: what needs one then fails.
device=${SSDKD_CHECK_DEVICE:-cuda}
# shellcheck source=launch/common.sh
. launch/common.sh
gpus=$(gpus)
[ "$gpus" -gt 0 ] || [ "$device" = cpu ] || die "nvidia-smi lists no GPU here: run this on a machine with an NVIDIA GPU and its driver (580 or newer)"
out=${1:-gpu_check}
mkdir -p "$out"
out=$(cd "$out" && pwd)

if [ -e env.sh ]; then
    # shellcheck disable=SC1091
    . ./env.sh
    ssdkd=ssdkd
else
    launch/setup.sh --gpu
    rustup_first
    cargo build --release --locked
    ssdkd=target/release/ssdkd
fi
export SSDKD__PARALLEL__SHARE_GPU=true
report=$out/report.md failed=0

say() { printf '%s\n' "$*" | tee -a "$report"; }
# check NAME COMMAND...: runs it, with its output in a log named after it.
check() {
    local name=$1 log began=$SECONDS; shift
    log=$out/$(tr -c 'a-zA-Z0-9\n' '-' <<<"$name").log
    : >"$log"
    if "$@" >>"$log" 2>&1; then say "| $name | passed | $((SECONDS - began)) s |"
    else say "| $name | **FAILED**: $(tail -n1 "$log" | cut -c1-120 | tr '|' '/') | see $(basename "$log") |"; failed=$((failed + 1)); fi
}
# on RANKS ARGUMENT...: ssdkd on so many ranks.
on() { local ranks=$1; shift; if [ "$ranks" = 1 ]; then "$ssdkd" "$@"; else launch/mpirun.sh "$ranks" "$ssdkd" "$@"; fi; }

: > "$report"
say "# GPU check"
say
say '```'
{ nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 || true; } | tee -a "$report"
SSDKD__DEVICE=$device "$ssdkd" doctor 2>&1 | tee -a "$report" || true
say '```'
say
say "| check | result | |"
say "| --- | --- | --- |"

# told RANKS OPTIONS PATTERN...: `ssdkd doctor` finds nothing wrong and says all of these.
told() {
    local ranks=$1 options=$2 said pattern status=0; shift 2
    # shellcheck disable=SC2086
    said=$(SSDKD__DEVICE=$device on "$ranks" doctor $options) || status=$?
    printf '%s\n' "$said"
    [ $status -eq 0 ] || { echo "doctor ends with $status: $(grep -E '^(ranks|sums|device|networks) ' <<<"$said" | tr '\n' ';')"; return $status; }
    for pattern; do grep -E "$pattern" <<<"$said" >/dev/null || { echo "doctor does not say: $pattern"; return 1; }; done
}
right="every operation gives the right answer"
check "conformance, one rank" told 1 "" "$right" "^device .*Cuda"
for ranks in 2 4; do check "conformance and sums, $ranks ranks over NCCL" told $ranks "" "$right" "^device .*Cuda.* NCCL"; done
check "all networks' numbers are PyTorch's" told 1 --networks "^networks .* give PyTorch's numbers on Cuda"

# Images made of sines, in the one format that both sides read.
numbers() { "${PYTHON:-python3}" - "$@" <<'PY'
import json, math, struct, sys
def write(path, shape):
    n = math.prod(shape)
    raw = struct.pack(f"<{n}f", *(math.sin(0.37 * i) for i in range(n)))
    head = json.dumps({"images": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * n]}}).encode()
    open(path, "wb").write(struct.pack("<Q", len(head)) + head + raw)
def read(path):
    raw = open(path, "rb").read()
    size = struct.unpack("<Q", raw[:8])[0]
    entry = json.loads(raw[8:8 + size])["logits"]
    a, b = entry["data_offsets"]
    return struct.unpack(f"<{(b - a) // 4}f", raw[8 + size + a:8 + size + b])
if sys.argv[1] == "images":
    write(sys.argv[2], [16, 1, 32, 32])
else:
    a, b = read(sys.argv[2]), read(sys.argv[3])
    largest, apart = max(map(abs, a)), max(abs(x - y) for x, y in zip(a, b))
    print(f"largest logit {largest:.4g}, largest difference {apart:.3g}")
    sys.exit(not (len(a) == len(b) > 0 and math.isfinite(apart) and apart < 1e-4 * largest))
PY
}
logits() {
    local on teacher=configs/fashion_mnist/teacher.safetensors
    rm -f "$out"/logits-*.safetensors
    numbers images "$out/images.safetensors" || return
    for on in cpu "$device"; do
        "$ssdkd" predict --weights $teacher --model wrn16_2 --classes 10 --input "$out/images.safetensors" --device "$on" \
            --out "$out/logits-$on.safetensors" || return
    done
    numbers compare "$out/logits-cpu.safetensors" "$out/logits-$device.safetensors"
}
check "logits on CUDA are the CPU's" logits

# short NAME RANKS ARGUMENT...: a few rounds of the demo on GPUs.
short() {
    local name=$1 ranks=$2; shift 2
    rm -rf "$out/runs/$name"
    on "$ranks" train --config configs/fashion_mnist/demo.toml --run-dir "$out/runs/$name" --set device=$device --set parallel.logical_ranks=2 \
        --set train.rounds=4 --set train.warmup_rounds=1 --set train.eval_every_rounds=2 --set replay.capacity=400 \
        --set distill.steps_per_round=4 "$@"
}
# same NAME NAME: every bit of two runs' checkpoints.
same() {
    local one other
    one=$("$ssdkd" inspect --checksum "$out/runs/$1") && other=$("$ssdkd" inspect --checksum "$out/runs/$2") || return
    printf '%s\n' "$one" "" "$other"
    [ -n "$one" ] && [ "$one" = "$other" ]
}
twice() { short again-a 1 "$@" && short again-b 1 "$@" && same again-a again-b; }
check "the same run twice: every bit" twice
two() { short ranks-1 1 "$@" && short ranks-2 2 "$@" && same ranks-1 ranks-2; }
check "two ranks give the bits of one" two
native() { short native-2 2 --set parallel.reduce=native; }
check "two ranks with NCCL's own sum" native
staged() {
    local hidden said
    hidden=$(mktemp -d)
    ln -s /dev/null "$hidden/libnccl.so"
    said=$(LD_LIBRARY_PATH=$hidden:${LD_LIBRARY_PATH:-} short staged-2 2 2>&1) || { printf '%s\n' "$said"; return 1; }
    printf '%s\n' "$said"
    grep "through host memory" <<<"$said" >/dev/null || { echo "tensors did not go through host memory"; return 1; }
    same ranks-1 staged-2
}
check "two ranks through host memory, NCCL hidden" staged

for student in resnet18 resnet34 vgg11 wrn16_2 wrn40_1 wrn40_2; do
    check "$student as student, deterministic kernels, twice" twice --set student.model=$student --set train.rounds=2
done
method_run() {
    local steps=3 warmup=1
    case $1 in dafl | dfad | dfq | zskt) steps=1 ;; esac
    # Their student takes part from the first round on.
    case $1 in dfad | zskt) warmup=0 ;; esac
    twice --config "configs/methods/$1.toml" --set inversion.steps=$steps --set train.warmup_rounds=$warmup --set inversion.batch_size=32 \
        --set distill.batch_size=64
}
for method in cmi dafl deepinv dfad dfq fast zskt; do check "method $method, deterministic kernels, twice" method_run $method; done
for precision in tf32 bf16; do
    check "precision $precision: every bit twice" twice --set train.precision=$precision
    check "precision $precision: two ranks give the bits of one" two --set train.precision=$precision
done
scenes() {
    "$ssdkd" teach --config configs/scenes13/teacher.toml --run-dir "$out/runs/scenes-$1" --fresh --set device=$device --set teacher.model="$1" \
        --set data.train_scenes=16 --set data.test_scenes=4 --set teach.epochs=1
}
scenes_inverted() {
    "$1" --config configs/scenes13/demo.toml --set teacher.model="$2" --set teacher.weights="$out/runs/scenes-$2/teacher.safetensors" \
        --set data.test_scenes=4 --set train.rounds=2 --set inversion.steps=2 --set inversion.batch_size=4 --set distill.batch_size=8 "${@:3}"
}
for model in deeplabv3_mobilenet deeplabv3_resnet50; do
    check "$model on scenes, deterministic kernels" scenes $model
    check "$model inverted, deterministic kernels, twice" scenes_inverted twice $model
    check "$model inverted: two ranks give the bits of one" scenes_inverted two $model
    check "$model inverted in bf16, twice" scenes_inverted twice $model --set train.precision=bf16
    check "$model inverted in bf16: two ranks give the bits of one" scenes_inverted two $model --set train.precision=bf16
done

demo() { on "$1" train --config configs/fashion_mnist/demo.toml --run-dir "$out/runs/demo" --fresh --set device=$device; }
check "the demo" demo "$(( gpus > 1 ? 2 : 1 ))"
say
say '```'
tail -n 12 "$out/the-demo.log" | tee -a "$report"
for dtype in f32 tf32 bf16; do "$ssdkd" bench step --device $device --dtype $dtype 2>&1 | tee -a "$report" || failed=$((failed + 1)); done
launch/mpirun.sh 2 "$ssdkd" bench step --device $device --share-gpu 2>&1 | tee -a "$report" || failed=$((failed + 1))
launch/mpirun.sh 2 "$ssdkd" bench ranks --device $device --share-gpu 2>&1 | tee -a "$report" || failed=$((failed + 1))
say '```'
say
say "$failed checks failed; this report is $report"
[ "$failed" -eq 0 ]
