#!/usr/bin/env bash
# Measures an H200, the most valuable rows first. Every step takes less than ten minutes, can be repeated, and goes
# on where it was cut off:
#
#   bash profiling/campaign_h200.sh --list     steps with the minutes that they are expected to take
#   bash profiling/campaign_h200.sh --check    what is missing on this machine, in one line
#   bash profiling/campaign_h200.sh            all steps
#   bash profiling/campaign_h200.sh 1 2        some steps
#
# Runs from a checkout, installed or not: the machine needs Python 3.11 with torch for CUDA, and what --check names.
# The environment changes what is needed to prove it elsewhere: PYTHON, DEVICE=cpu GRID=smoke MODEL=tiny-llama (in
# place of every model), BATCHES, REPEATS, STEPS, GATE, LIMITS (options of validate), BUDGET (of one command), OUT.
set -euo pipefail

PYTHON=${PYTHON:-python3}
OUT=${OUT:-profiling/h200}
DEVICE=${DEVICE:-cuda}
GRID=${GRID:-gpu}
BUDGET=${BUDGET:-9min}
BATCHES=${BATCHES:-120}
STEPS=${STEPS:-200}
REPEATS=${REPEATS:-15}
GATE=${GATE:-5}
LIMITS=${LIMITS:-}
BROKEN_DEVICE=5 # exit code of a limit: the process can go no further, a fresh one can
TRIES=6

PYTHONPATH="$(cd "$(dirname "$0")/.." && pwd)${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH

# number | expected minutes | what | model | degrees of tensor parallelism
PLAN="1|2|run|llama-3.1-8b|1
2|5|validate|llama-3.1-8b|1
3|5|loop|llama-3.1-8b|1
4|3|run|llama-3.1-8b|1 2 4 8
5|3|run|llama-3.1-70b|4 8
6|2|run|qwen2.5-7b|1
7|2|run|mistral-7b|1
8|3|run|qwen3-30b-a3b|1"

cspsched() {
  "$PYTHON" -m cspsched "$@"
}

check() { # what is here, or what is missing; fails where nothing could be measured
  "$PYTHON" - "$DEVICE" <<'EOF'
import importlib.util
import platform
import sys

needed = ("click", "numpy", "pandas", "pyarrow", "numba", "sklearn", "rich", "torch")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if sys.version_info < (3, 11):
    missing.append(f"Python 3.11 (this is {platform.python_version()})")
if missing:
    sys.exit(f"cannot measure here: {sys.executable} lacks {', '.join(missing)}")
import torch

where = f"Python {platform.python_version()}, torch {torch.__version__}"
if sys.argv[1] == "cpu":
    print(f"{where}, on a CPU", file=sys.stderr)
elif not torch.cuda.is_available():
    sys.exit(f"cannot measure here: {where} finds no CUDA device")
else:
    free, total = (round(size / 2**30) for size in torch.cuda.mem_get_info())
    name = torch.cuda.get_device_name()
    print(f"{where}, CUDA {torch.version.cuda}, {name}: {free} of {total} GiB free", file=sys.stderr)
EOF
}

measure() { # model, degrees
  local try code
  for try in $(seq "$TRIES"); do
    code=0
    # shellcheck disable=SC2086 - the degrees are several words
    cspsched profile run --model "${MODEL:-$1}" --tp $2 --device "$DEVICE" --grid "$GRID" \
      --repeats "$REPEATS" --time-budget "$BUDGET" --resume --output "$OUT/$1" || code=$?
    [ "$code" -eq "$BROKEN_DEVICE" ] || return "$code"
    echo "try $try of $TRIES broke the device; going on in a new process" >&2
  done
  return "$BROKEN_DEVICE"
}

judge() { # model, folder, further options
  local folder="$OUT/$1" result="$OUT/$1/$2"
  shift 2
  cspsched profile fit "$folder" --model "${MODEL:-$(basename "$folder")}" --output "$folder/cost.toml" ||
    return
  # shellcheck disable=SC2086 - the limits are several words
  cspsched profile validate --cost "$folder/cost.toml" $LIMITS --device "$DEVICE" --repeats "$REPEATS" \
    --time-budget "$BUDGET" --out "$result" "$@"
}

step() { # what, model, degrees
  case $1 in
    run) measure "$2" "$3" ;;
    validate) judge "$2" validation --batches "$BATCHES" --gate "$GATE" || [ $? -eq 3 ] ;;
    loop) judge "$2" loop --batches 48 --loop-steps "$STEPS" ;;
  esac
}

if [ "${1:-}" != --list ]; then check; fi
if [ "${1:-}" = --check ]; then exit 0; fi
failed=""
while IFS='|' read -r number minutes what model degrees <&3; do
  if [ "${1:-}" = --list ]; then
    printf '%s  %2s min  %-8s %s, tensor parallelism %s\n' "$number" "$minutes" "$what" "$model" "$degrees"
    continue
  fi
  if [ $# -gt 0 ] && [[ " $* " != *" $number "* ]]; then continue; fi
  echo "step $number: $what $model, about $minutes minutes" >&2
  # One step less is no reason to leave the device idle.
  step "$what" "$model" "$degrees" || failed="$failed $number"
done 3<<<"$PLAN"
if [ -n "$failed" ]; then
  echo "steps that failed:$failed" >&2
  exit 1
fi
