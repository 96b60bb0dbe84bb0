#!/usr/bin/env bash
# What only a GPU can tell, for a machine that is there for fifteen minutes:
#
#   bash bench/gpu_suite.sh [smoke] [numbers] [tests] [profile] [--go-on] [--small] [--rehearse]
#
#   smoke    60 s   pictures by every solver, precision, graph mode and preset against a CPU's
#                   (python -m bench.smoke); ends at the first fault with what to paste into a report
#   numbers  4 min  step, prior, whole loops, the host's share of a call, torch.compile, the authors'
#                   loop (python -m bench.numbers) → <gpu>-<date>.json, to go into bench/results
#   tests    4 min  pytest -m gpu, the most telling first
#   profile  3 min  memcheck, racecheck and counters of the rectification kernels, by
#                   compute-sanitizer and ncu where they are there
#
# Without a part: smoke --go-on, numbers, tests. Needs PyTorch, Triton, and for the tests pytest,
# hypothesis and scikit-image: `make gpu-kit` packs what is missing. Installs and fetches nothing.
# Every part writes as it goes, NAME.log and summary.txt, to $OUT (default bench/results/gpu), so a
# run that is killed still tells. Variables: PYTHON; SECONDS_LEFT, in all (840); SMOKE_S, NUMBERS_S,
# TESTS_S, PROFILE_S, of a part. --small: few cases, --rehearse: no pixel is looked at; both are for
# devices that only stand for a GPU. Exits non-zero if anything failed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-bench/results/gpu}
python=${PYTHON:-python3}
left=${SECONDS_LEFT:-840}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

parts=() options=()
for word in "$@"; do
  case $word in
    smoke | numbers | tests | profile) parts+=("$word") ;;
    --go-on | --small | --rehearse) options+=("$word") ;;
    *)
      echo "gpu_suite: $word is no part and no option; expected smoke, numbers, tests, profile," \
        "--go-on, --small or --rehearse" >&2
      exit 2
      ;;
  esac
done
if [ "${#parts[@]}" = 0 ]; then
  parts=(smoke numbers tests)
  options+=(--go-on)
fi
rehearse=()
case " ${options[*]-} " in *" --rehearse "*) rehearse=(--rehearse) ;; esac

versions=$("$python" - <<'END'
import sys, platform
try:
    import torch
except ImportError as error:
    sys.exit(f"gpu_suite: {sys.executable} has no PyTorch ({error}); say which has: PYTHON=...")
if not torch.cuda.is_available():
    sys.exit(3)
print(torch.cuda.get_device_name(0), "torch", torch.__version__, "python", platform.python_version())
try:
    import triton
    print("triton", triton.__version__)
except Exception as error:
    print("triton does not import:", error)
END
)
case $? in
  0) ;;
  3) echo "no GPU: skipped" && exit 0 ;;
  *) exit 2 ;;
esac
mkdir -p "$out"
summary=$out/summary.txt
failed=0
printf '%s\n' "== $(date -u +%FT%TZ): ${parts[*]} ${options[*]-}, $left s left" "$versions" |
  tee -a "$summary"

run() { # run SECONDS NAME LOG COMMAND...: SECONDS at most, or what is left; output also to LOG
  local limit=$1 name=$2 log=$3 began=$SECONDS status
  shift 3
  [ "$limit" -le $((left - SECONDS)) ] || limit=$((left - SECONDS))
  if [ "$limit" -lt 5 ]; then
    echo "$name: left out, no time" | tee -a "$summary"
    return
  fi
  echo "== $name, $limit s at most" | tee -a "$out/$log"
  LIMIT=$limit timeout -k 10 "$limit" "$@" 2>&1 | tee -a "$out/$log"
  status=${PIPESTATUS[0]}
  # numbers ends in a compilation of minutes: it may be cut off there, and has written the rest
  case $name,$status in *,0 | numbers,124) ;; *) failed=1 ;; esac
  [ "$status" != 124 ] || echo "$name: cut off at $limit s" | tee -a "$out/$log"
  echo "$name: exit $status, $((SECONDS - began)) s" | tee -a "$summary"
}

smoke() { # cases start up to ten seconds before the end
  run "${SMOKE_S:-75}" smoke smoke.log sh -c '"$0" -m bench.smoke --seconds $((LIMIT - 15)) "$@"' \
    "$python" ${options[@]+"${options[@]}"}
}

numbers() {
  run "${NUMBERS_S:-240}" numbers numbers.log sh -c \
    '"$0" -m bench.numbers --within $((LIMIT - 20)) "$@"' \
    "$python" --out "$out" ${rehearse[@]+"${rehearse[@]}"}
}

tests() { # only files that have GPU tests are collected, which saves a minute
  local files
  files=$(grep -rl --include='test_*.py' 'mark\.gpu' tests/method/test_api.py \
    tests/kernels/test_kernels_gpu.py tests/priors/test_prior_gpu.py tests | awk '!seen[$0]++')
  # shellcheck disable=SC2086
  run "${TESTS_S:-240}" tests tests.log "$python" -m pytest -v -m gpu -rfEs --tb=line \
    -p no:cacheprovider -p bench.instant -o faulthandler_timeout=60 --durations=10 \
    --continue-on-collection-errors $files
}

profile() {
  local tool metrics
  for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
      run $((${PROFILE_S:-180} / 3)) "$tool" "$tool.log" compute-sanitizer --tool "$tool" \
        --error-exitcode 1 "$python" -m pytest -q -m gpu -p no:cacheprovider \
        tests/kernels/test_kernels_gpu.py -k for_the_sanitizer
    else
      echo "$tool: skipped, compute-sanitizer is not installed" | tee -a "$summary"
    fi
  done
  metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum
  metrics+=,dram__throughput.avg.pct_of_peak_sustained_elapsed
  metrics+=,sm__throughput.avg.pct_of_peak_sustained_elapsed
  metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active
  metrics+=,lts__t_sector_hit_rate.pct,launch__registers_per_thread,smsp__inst_executed.sum
  if command -v ncu >/dev/null; then
    run $((${PROFILE_S:-180} / 3)) ncu ncu.csv ncu --csv --page raw \
      --kernel-name 'regex:rectify_.*|spectral.*' --launch-skip 6 --launch-count 12 \
      --cache-control all --clock-control none --metrics "$metrics" \
      "$python" -m bench --for-profiler
  else
    echo "ncu: skipped, it is not installed" | tee -a "$summary"
  fi
}

for part in "${parts[@]}"; do "$part"; done
echo "== summary"
cat "$summary"
exit "$failed"
