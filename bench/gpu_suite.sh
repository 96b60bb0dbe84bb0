#!/usr/bin/env bash
# Everything that needs a GPU, in one command of under nine minutes: bash bench/gpu_suite.sh [FOLDER]
# For a bare CUDA machine with PyTorch, Triton, pytest, hypothesis, scikit-image, tqdm,
# typer and safetensors; nothing is installed and nothing fetched. CuPy, ncu and
# compute-sanitizer are used where they are.
#
#   tests.log      the GPU tests, and why any was skipped
#   bench.log      `python -m bench`: kernels, step, prior, loops, waterfall, video, as a table
#   <gpu>-<date>.json  the same with every sample: put it into bench/results
#   <gpu>-<date>-2.json  the official network, every way; a limit of time may cut it short: `python
#                  -m bench --report --from FILE` makes a page of what is there, and says what is not
#   sanitizer.log  memcheck and racecheck of the rectification kernels
#   ncu.csv        counters of the rectification kernels
#   summary.txt    what ran, what failed, how long each took
#
# Results go to FOLDER (default: $OUT, else bench/results/gpu). Exits non-zero if anything failed.
# Written on a machine without a GPU; the first machine with one may have to correct it.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-${OUT:-bench/results/gpu}}
python=${PYTHON:-python3}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "no GPU: skipped"
  exit 0
fi
mkdir -p "$out"
export PYTHONUNBUFFERED=1
summary=$out/summary.txt
"$python" - >"$summary" <<'END'
import torch, triton
print(torch.cuda.get_device_name(0), "torch", torch.__version__, "triton", triton.__version__)
END
failed=0

run() { # run SECONDS NAME LOG COMMAND...: SECONDS at most, output also to LOG
  local limit=$1 name=$2 log=$3 began=$SECONDS status
  shift 3
  echo "== $name"
  timeout -k 10 "$limit" "$@" 2>&1 | tee -a "$out/$log"
  status=$?
  # the official network's forms are more than fit: what was measured till then is kept
  [ "$status" = 0 ] || { [ "$status" = 124 ] && [ "$name" = official ]; } || failed=1
  echo "$name: exit $status, $((SECONDS - began)) s" | tee -a "$summary"
}

skipped() { echo "$1: skipped, $2 is not installed" | tee -a "$summary"; }

rm -f "$out"/*.log
run 150 tests tests.log "$python" -m pytest -q -m gpu -rs -p no:cacheprovider \
  --continue-on-collection-errors tests
rm -f "$out"/*-20*.json # of a run before
run 170 bench bench.log "$python" -m bench kernels step prior loop waterfall scaling throughput \
  video startup metrics --seconds 3 --repeats 20 --quiet --save --out "$out"
run 80 official bench.log "$python" -m bench official --seconds 3 --repeats 20 --quiet --save \
  --out "$out"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    run 40 "$tool" sanitizer.log compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" -m pytest -q -m gpu -p no:cacheprovider tests/kernels/test_kernels_gpu.py -k for_the_sanitizer
  done
else
  skipped "memcheck and racecheck" compute-sanitizer
fi
if command -v ncu >/dev/null; then
  echo "== ncu"
  metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum
  metrics+=,dram__throughput.avg.pct_of_peak_sustained_elapsed
  metrics+=,sm__throughput.avg.pct_of_peak_sustained_elapsed
  metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active
  metrics+=,lts__t_sector_hit_rate.pct,launch__registers_per_thread,smsp__inst_executed.sum
  timeout -k 10 50 ncu --csv --page raw --kernel-name 'regex:rectify_.*|spectral.*' \
    --launch-skip 6 --launch-count 12 --cache-control all --clock-control none \
    --metrics "$metrics" "$python" -m bench --for-profiler >"$out/ncu.csv"
  status=$?
  [ "$status" = 0 ] || failed=1
  echo "ncu: exit $status" | tee -a "$summary"
else
  skipped ncu ncu
fi
cat "$summary"
exit "$failed"
