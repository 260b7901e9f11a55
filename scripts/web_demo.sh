#!/usr/bin/env bash
# Serves a web page for chatting with the model, and the API at the same address, on port 7860 of this machine.
#   bash scripts/web_demo.sh                                       the built-in tiny-chatglm
#   bash scripts/web_demo.sh --ptuning_checkpoint CHECKPOINT ...   with a tuned prefix; NAME=CHECKPOINT for several
set -euo pipefail
. "$(dirname "$0")/setup.sh"

exec "$ptuning_python" -P -m ptuning web "$@"
