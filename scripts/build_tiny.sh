#!/usr/bin/env bash
# Builds the built-in model and its data from scratch: tuning rows, vocabulary, pretraining (on a CPU, about 5 minutes).
# Usage: bash scripts/build_tiny.sh [MODEL_FOLDER] [DATA_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
model="${1:-ptuning/assets/tiny-chatglm}"
data="${2:-data}"
echo "1/3 rows       -> $data"
python -m scripts.tiny.rows "$data"
echo "2/3 vocabulary -> $model/ice_text.model"
python -m scripts.tiny.vocabulary "$model"
echo "3/3 backbone   -> $model/model.safetensors"
python -m scripts.tiny.pretrain "$model"
