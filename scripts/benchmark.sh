#!/usr/bin/env bash
# Runs one benchmark: prints a table and one JSON line (machine, commit, settings, results).
#   bash scripts/benchmark.sh NAME [options]      without a NAME it lists them; --help behind it lists options
set -euo pipefail
. "$(dirname "$0")/setup.sh"

cd "$ptuning_root"
exec "$ptuning_python" -m benchmarks "$@"
