#!/usr/bin/env bash
# Checks style and types and runs the whole test suite; pytest's closing line comes last.
#   bash scripts/test.sh [pytest arguments]     PTUNING_TEST_WORKERS: processes that share the tests (default 2)
set -euo pipefail
ptuning_needs=tests
. "$(dirname "$0")/setup.sh"

cd "$ptuning_root"
# One thread a process: the processes share the cores, and results do not depend on the machine's number of cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
status=0
echo "== ruff check"
"$ptuning_python" -m ruff check . || status=1
echo "== mypy"
"$ptuning_python" -m mypy || status=1
if [ "$status" != 0 ]; then echo "style or types failed (above); the tests run all the same"; fi
echo "== pytest"
"$ptuning_python" -m pytest -q -n "${PTUNING_TEST_WORKERS:-2}" "$@" || status=1
exit "$status"
