#!/usr/bin/env bash
# Measures this machine's GPU in at most 8 minutes, parity with the CPU first. Each step has a limit of its own and writes a
# JSON line for each result at once, so that what was done stays where a step is cut off.
#   run.sh [--dry-run]     --dry-run: the same steps on the CPU, with few and small operands, and four times the limits
#   OUT                    where results.jsonl goes (out/gpu)
#   PYTHON                 the Python to run (.venv/bin/python)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH=$PWD
OUT=${OUT:-out/gpu} PYTHON=${PYTHON:-.venv/bin/python} failed=0
mkdir -p "$OUT"
for step in "machine 20" "parity 75" "kernels 40" "functions 50" "models 160" "processes 90" "threads 45"; do
    read -r name limit <<<"$step"
    if [ "${1-}" = --dry-run ]; then limit=$((4 * limit)); fi
    timeout "$limit" "$PYTHON" -m benchmarks.gpu.steps "$name" "$OUT/results.jsonl" "$@"
    code=$?
    if [ $code -ne 0 ]; then
        echo "step $name ended with $code after at most $limit s" >&2
        failed=1
    fi
    if [ "$name" = parity ] && [ $code -ne 0 ]; then break; fi # times of wrong kernels are no times
done
exit $failed
