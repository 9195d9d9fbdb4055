#!/usr/bin/env bash
# The GPU tests and the benchmarks on one GPU, in under 8 minutes, without a network.
#
#     experiments/gpu_check.sh [FOLDER]      # results go there, by default gpu_check/
#
# PYTHON: an interpreter with kdfm_ray and its dev packages; by default .venv's, else python3.
set -uo pipefail # a part that fails is told, and the others still run
out=$(realpath -m "${1:-gpu_check}")
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

timeout 120 "$python" -m pytest tests/gpu -p no:cacheprovider 2>&1 | tee "$out/tests.log" || failed=1

bench() { # SECONDS PART FLAGS...
  local limit=$1
  shift
  echo "kdfm bench $*"
  timeout "$limit" "$python" -m kdfm_ray bench "$@" --json | tee -a "$out/bench.jsonl" || failed=1
}
step="step --model wrn_28_2 --global-batch 64 --mu 7 --size 32 --steps 20"
pinned="--precision bf16 --memory-format channels_last"
bench 40 $step
bench 120 $step $pinned --compile on
bench 25 $step --precision fp32 --memory-format channels_last
bench 25 $step $pinned --mask-rate 0.5
bench 25 $step $pinned --mask-rate 0.1
bench 20 augment --size 32
bench 25 label --model wrn_28_2 --count 50000 $pinned
bench 20 select --count 60000
bench 60 select --count 1000000

echo "results: $out/tests.log, $out/bench.jsonl"
exit $failed
