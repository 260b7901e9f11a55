#!/usr/bin/env bash
# Predicts test rows and scores the replies.
#   bash scripts/evaluate.sh                              the last checkpoint of scripts/train.sh (output/tiny)
#   bash scripts/evaluate.sh CHECKPOINT [--name value ...] a checkpoint, or a training's output folder (its last one);
#                                                         model and rows are those it was trained with, unless flags say otherwise
#   bash scripts/evaluate.sh --model_name_or_path ... --ptuning_checkpoint ...   as the published script
#   bash scripts/evaluate.sh CONFIG.yaml [CHECKPOINT] ... settings from a file; without a checkpoint: the base model
set -euo pipefail
. "$(dirname "$0")/setup.sh"

case "${1-}" in
    "" | -* | *=*)  # flags only: the last training, unless they say which model is meant
        case " $* " in *model_name_or_path* | *ptuning_checkpoint*) ;; *) set -- output/tiny "$@" ;; esac ;;
esac
exec "$ptuning_python" -P -m ptuning evaluate "$@"
