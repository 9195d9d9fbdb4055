#!/usr/bin/env bash
# What a machine with one GPU can show, without a network: tests and benchmarks in under 8 minutes, and
# whole runs, in which the stages take the one GPU in turn, in under 8 more.
#
#     experiments/gpu_check.sh [FOLDER]           # tests and benchmarks; into gpu_check/ by default
#     experiments/gpu_check.sh FOLDER runs        # runs alone
#     experiments/gpu_check.sh FOLDER all         # both
#
# PYTHON: an interpreter with kdfm_ray and its dev packages; by default .venv's, else python3.
set -uo pipefail # a part that fails is told, and the others still run
out=$(realpath -m "${1:-gpu_check}")
part=${2:-bench}
[[ $part =~ ^(bench|runs|all)$ ]] || { echo "unknown part $part: bench, runs or all"; exit 2; }
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" > /dev/null || python=python3
mkdir -p "$out"
: > "$out/bench.jsonl"
failed=0

"$python" -c 'import sys, torch
if not torch.cuda.is_available():
    sys.exit("torch sees no GPU here: run this on a machine with one")
print(torch.cuda.get_device_name(0), "torch", torch.__version__, "CUDA", torch.version.cuda)' || exit 1

if [[ $part != runs ]]; then
timeout 150 "$python" -m pytest tests/gpu -p no:cacheprovider 2>&1 | tee "$out/tests.log" || failed=1

bench() { # SECONDS PART FLAGS...
  local limit=$1
  shift
  echo "kdfm bench $*"
  timeout "$limit" "$python" -m kdfm_ray bench "$@" --json | tee -a "$out/bench.jsonl" || failed=1
}
step="step --model wrn_28_2 --global-batch 64 --mu 7 --size 32 --steps 20"
pinned="--precision bf16 --memory-format channels_last"
bench 40 $step
bench 90 $step $pinned --compile on
bench 25 $step --precision fp32 --memory-format channels_last
bench 25 $step $pinned --mask-rate 0.5
bench 25 $step $pinned --mask-rate 0.1
bench 20 augment --size 32
bench 25 label --model wrn_28_2 --count 50000 $pinned
bench 20 select --count 60000
bench 60 select --count 1000000
fi

if [[ $part != bench ]]; then
timeout 120 "$python" -m kdfm_ray doctor --store "$out/store" | tee "$out/doctor.log" || failed=1
# Training, labeling and selection, each with the one GPU; a labeling pass by two actors that share it.
timeout 200 "$python" -m kdfm_ray train digits --label.gpus-per-actor 0.5 --scale.use-gpu yes \
  --out "$out/run" --store "$out/store" 2>&1 | tee "$out/run.log" || failed=1
# A sweep: one trial at a time, then two that share the GPU.
sweep="sweep digits --grid select.tau_select=0.7,0.8 --seeds 0 --train.steps 60 --train.eval-every 30"
timeout 120 "$python" -m kdfm_ray $sweep --scale.use-gpu yes --out "$out/sweep" --store "$out/store" \
  2>&1 | tee "$out/sweep.log" || failed=1
grep -q "1 trial at once, 1 GPU each" "$out/sweep.log" || { echo "not one trial at a time"; failed=1; }
timeout 120 "$python" -m kdfm_ray $sweep --scale.use-gpu yes --gpus-per-trial 0.5 \
  --out "$out/shared" --store "$out/store-shared" 2>&1 | tee "$out/shared.log" || failed=1
grep -q "2 trials at once, 0.5 GPU each" "$out/shared.log" || { echo "GPU not shared"; failed=1; }
fi

echo "results: $out"
exit $failed
