#!/usr/bin/env bash
# Measures an H200, the most valuable rows first. Every step takes less than ten minutes, can be repeated, and goes
# on where it was cut off:
#
#   bash profiling/campaign_h200.sh --list     steps with the minutes that they are expected to take
#   bash profiling/campaign_h200.sh            all steps
#   bash profiling/campaign_h200.sh 1 2        some steps
#
# The environment changes what is needed to prove it elsewhere: DEVICE=cpu GRID=smoke MODEL=tiny-llama (in place of
# every model), BATCHES, REPEATS, STEPS, GATE, LIMITS (options of validate), BUDGET, OUT, CSPSCHED (the command).
set -euo pipefail

CSPSCHED=${CSPSCHED:-cspsched}
OUT=${OUT:-profiling/h200}
DEVICE=${DEVICE:-cuda}
GRID=${GRID:-gpu}
BUDGET=${BUDGET:-9min}
BATCHES=${BATCHES:-120}
STEPS=${STEPS:-200}
REPEATS=${REPEATS:-15}
GATE=${GATE:-5}
LIMITS=${LIMITS:-}

# number | expected minutes | what | model | degrees of tensor parallelism
PLAN="1|2|run|llama-3.1-8b|1
2|5|validate|llama-3.1-8b|1
3|5|loop|llama-3.1-8b|1
4|3|run|llama-3.1-8b|1 2 4 8
5|3|run|llama-3.1-70b|4 8
6|2|run|qwen2.5-7b|1
7|2|run|mistral-7b|1
8|3|run|qwen3-30b-a3b|1"

measure() { # model, degrees
  # shellcheck disable=SC2086 - the degrees are several words
  "$CSPSCHED" profile run --model "${MODEL:-$1}" --tp $2 --device "$DEVICE" --grid "$GRID" \
    --repeats "$REPEATS" --time-budget "$BUDGET" --resume --output "$OUT/$1"
}

judge() { # model, folder, further options
  local folder="$OUT/$1" result="$OUT/$1/$2"
  shift 2
  "$CSPSCHED" profile fit "$folder" --model "${MODEL:-$(basename "$folder")}" --output "$folder/cost.toml"
  # shellcheck disable=SC2086 - the limits are several words
  "$CSPSCHED" profile validate --cost "$folder/cost.toml" $LIMITS --device "$DEVICE" --repeats "$REPEATS" \
    --time-budget "$BUDGET" --out "$result" "$@"
}

while IFS='|' read -r number minutes what model degrees <&3; do
  if [ "${1:-}" = --list ]; then
    printf '%s  %2s min  %-8s %s, tensor parallelism %s\n' "$number" "$minutes" "$what" "$model" "$degrees"
    continue
  fi
  if [ $# -gt 0 ] && [[ " $* " != *" $number "* ]]; then continue; fi
  echo "step $number: $what $model, about $minutes minutes" >&2
  case $what in
    run) measure "$model" "$degrees" ;;
    validate) judge "$model" validation --batches "$BATCHES" --gate "$GATE" || [ $? -eq 3 ] ;;
    loop) judge "$model" loop --batches 48 --loop-steps "$STEPS" ;;
  esac
done 3<<<"$PLAN"
