#!/usr/bin/env bash
# Generates replies to test rows and scores them.
#   bash scripts/evaluate.sh                              the last checkpoint of scripts/train.sh (output/tiny)
#   bash scripts/evaluate.sh CHECKPOINT [--name value ...] a checkpoint, or the output folder of a run (its last one);
#                                                         with the model and rows of its training, unless flags say otherwise
#   bash scripts/evaluate.sh --model_name_or_path ... --ptuning_checkpoint ...   like the published script
#   bash scripts/evaluate.sh CONFIG.yaml [CHECKPOINT] ... settings from a file; without a checkpoint: the base model
set -euo pipefail
. "$(dirname "$0")/setup.sh"

case "${1-}" in
    "" | -* | *=*)  # flags only: the last run, unless they name a model
        case " $* " in *model_name_or_path* | *ptuning_checkpoint*) ;; *) set -- output/tiny "$@" ;; esac ;;
esac
exec "$ptuning_python" -P -m ptuning evaluate "$@"
