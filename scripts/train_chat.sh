#!/usr/bin/env bash
# Tunes a prefix on dialogue rows (question, reply and earlier rounds).
#   bash scripts/train_chat.sh                                  tiny-chatglm on the built-in dialogues
#   bash scripts/train_chat.sh [CONFIG.yaml] [--name value ...] any settings; flags override the file
set -euo pipefail
. "$(dirname "$0")/setup.sh"

config="$ptuning_root/configs/tiny-chat.yaml"
case "${1-}" in *.yaml | *.yml | *.json) config=$1; shift ;; esac
exec "$ptuning_python" -P -m ptuning train "$config" "$@"
