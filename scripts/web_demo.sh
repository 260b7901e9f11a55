#!/usr/bin/env bash
# A page to talk to the model in a browser, on port 7860 of this machine; the API is at the same address.
#   bash scripts/web_demo.sh                                       the built-in tiny-chatglm
#   bash scripts/web_demo.sh --ptuning_checkpoint CHECKPOINT ...   with a tuned prefix; NAME=CHECKPOINT for several
set -euo pipefail
. "$(dirname "$0")/setup.sh"

exec "$ptuning_python" -P -m ptuning web "$@"
