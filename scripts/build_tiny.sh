#!/usr/bin/env bash
# Builds the embedded default model and its data from nothing: tuning rows, vocabulary, pretraining (CPU, 2 cores).
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
