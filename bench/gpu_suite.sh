#!/usr/bin/env bash
# Everything that needs a GPU, in one command of a few minutes: bash bench/gpu_suite.sh [FOLDER]
# Results go to FOLDER (default: $OUT, else bench/results/gpu). Exits non-zero if anything failed.
# Written on a machine without a GPU; the first machine with one may have to mend it.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-${OUT:-bench/results/gpu}}
python=${PYTHON:-python3}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "no GPU: skipped"
  exit 0
fi
mkdir -p "$out"
failed=0
run() {
  local name=$1
  shift
  echo "== $name"
  timeout 240 "$@" 2>&1 | tee "$out/$name.log" || { echo "== $name: FAILED"; failed=1; }
}
run tests "$python" -m pytest -q -m gpu -rs --continue-on-collection-errors tests
run step "$python" -m bench.gpu --out "$out"
run prior "$python" -m bench.gpu_prior --out "$out"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    run "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" -m pytest -q -m gpu tests/test_kernels_gpu.py -k "same_bytes and size0"
  done
else
  echo "compute-sanitizer is not installed: memcheck and racecheck skipped"
fi
exit "$failed"
