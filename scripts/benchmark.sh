#!/usr/bin/env bash
# Runs one benchmark: prints a table and one JSON line (command, machine, commit, settings, results).
#   bash scripts/benchmark.sh NAME [--size tiny|mid|6b] [--device cpu|cuda] [options]   NAME --help lists the options
#   bash scripts/benchmark.sh                           lists the names
#   bash scripts/benchmark.sh all --output FILE         all of them with modest settings; JSON lines in one file
#   bash scripts/benchmark.sh record FILE               writes those lines into the tables of docs/performance.md
set -euo pipefail
. "$(dirname "$0")/setup.sh"

cd "$ptuning_root"
exec "$ptuning_python" -m benchmarks "$@"
