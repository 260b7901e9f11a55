#!/usr/bin/env bash
# Serves the HTTP API (the published POST / and OpenAI's /v1) on port 8000 of this machine.
#   bash scripts/api.sh                                       the built-in tiny-chatglm
#   bash scripts/api.sh --ptuning_checkpoint CHECKPOINT ...   with a tuned prefix; NAME=CHECKPOINT for several
set -euo pipefail
. "$(dirname "$0")/setup.sh"

exec "$ptuning_python" -P -m ptuning serve "$@"
