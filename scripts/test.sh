#!/usr/bin/env bash
# Checks style and types and runs the test suite; pytest's closing line comes last.
#   bash scripts/test.sh [--quick] [pytest arguments]
#     --quick                leaves out the tests marked slow: about a minute on two cores with warm caches
#     --help                 says this; all other arguments go to pytest (what it knows: python -m pytest --help)
#     PTUNING_TEST_WORKERS   (environment) processes that share the tests (default 2)
set -euo pipefail

marked=()
arguments=()
for argument in "$@"; do
    case "$argument" in
        --quick) marked=(-m "not slow") ;;
        -h | --help) sed -n '2,/^set /s/^# //p' "$0"; exit 0 ;;
        *) arguments+=("$argument") ;;
    esac
done

ptuning_needs=tests
. "$(dirname "$0")/setup.sh"

cd "$ptuning_root"
# One thread a process: the processes share the cores, and results do not depend on the machine's number of cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
if [ -t 1 ]; then export PY_COLORS="${PY_COLORS-1}"; fi  # pytest writes into a pipe

check_style_and_types() {
    local status=0
    echo "== ruff check"
    "$ptuning_python" -m ruff check . || status=1
    echo "== mypy"
    "$ptuning_python" -m mypy || status=1
    if [ "$status" != 0 ]; then echo "style or types failed (above); the tests run all the same"; fi
    echo "== pytest"
    return "$status"
}

# Style and types are checked beside the tests, whose output waits in the pipe until theirs is out.
status=0
"$ptuning_python" -m pytest -q -n "${PTUNING_TEST_WORKERS:-2}" ${marked[@]+"${marked[@]}"} ${arguments[@]+"${arguments[@]}"} 2>&1 | {
    checked=0
    check_style_and_types 2>&1 || checked=1
    (trap '' INT; exec cat)  # with Ctrl-C pytest still has its say
    exit "$checked"
} || status=1
exit "$status"
