#!/usr/bin/env bash
# Predicts test rows and scores the replies.
#   bash scripts/evaluate.sh                              the last checkpoint of scripts/train.sh (output/tiny)
#   bash scripts/evaluate.sh CHECKPOINT [--name value ...] a checkpoint, or a training's output folder (its last one);
#                                                         model and rows are those it was trained with, unless flags say otherwise
#   bash scripts/evaluate.sh CONFIG.yaml [CHECKPOINT] ... settings from a file; without a checkpoint: the base model
set -euo pipefail
. "$(dirname "$0")/setup.sh"

case "${1-}" in "" | -* | *=*) set -- output/tiny "$@" ;; esac
exec "$ptuning_python" -P -m ptuning evaluate "$@"
