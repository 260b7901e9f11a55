#!/usr/bin/env bash
# Tunes a prefix, and evaluates it if the settings name test rows.
#   bash scripts/train.sh                                  the built-in tiny-chatglm on the built-in rows
#   bash scripts/train.sh [CONFIG.yaml] [--name value ...] any settings; flags override the file
# Paths are relative to the current directory; those in a settings file may also be relative to the checkout.
set -euo pipefail
. "$(dirname "$0")/setup.sh"

config="$ptuning_root/configs/tiny.yaml"
case "${1-}" in *.yaml | *.yml | *.json) config=$1; shift ;; esac
exec "$ptuning_python" -P -m ptuning train "$config" "$@"
