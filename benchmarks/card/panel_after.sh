#!/bin/bash
# From panel.tgz to the tables, on a CPU, from the repository root: bash benchmarks/card/panel_after.sh panel.tgz
set -eu
NAME="Qwen2.5-Coder-1.5B-Instruct"
mkdir -p runs/card && tar xzf "$1" -C runs/card
python -m benchmarks.step_choice --table runs/card/steps --out benchmarks/results/steps-1.5b --name "$NAME"
python -m benchmarks.anchors --table runs/card/anchors --out benchmarks/results/comparisons-1.5b --name "$NAME"
python -m benchmarks.contrasts --readings runs/card/panel --small runs/card/small --out benchmarks/results/contrasts-1.5b --name "$NAME"
python -m benchmarks.judge_table runs/card/refs benchmarks/results/references-1.5b --against weighted --name "$NAME" \
  --command "latent-rewards evaluate --config configs/evaluate/references.yaml" --picture none
python -m benchmarks.panel_table --readings runs/card/panel --out benchmarks/results/panel-1.5b --name "$NAME"
