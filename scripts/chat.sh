#!/usr/bin/env bash
# Chats with the base model or a tuned one in the terminal.
#   bash scripts/chat.sh                                       the built-in tiny-chatglm
#   bash scripts/chat.sh --ptuning_checkpoint CHECKPOINT ...   with a tuned prefix
set -euo pipefail
. "$(dirname "$0")/setup.sh"

exec "$ptuning_python" -P -m ptuning chat "$@"
