#!/usr/bin/env bash
# Run vanilla and GoCA with the embedded model on its 200 test images; prints a table and draws a figure.
# Finished runs are only shown; remove runs/demo to compute them again.
out=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../runs/demo}")
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
for model in mini-sd-vanilla mini-sd; do
  echo; echo "== main.py model=$model dataset=scenes"
  .venv/bin/python src-main/main.py "model=$model" dataset=scenes "run_dir=$out/$model"
done
.venv/bin/python scripts/compare_runs.py "vanilla=$out/mini-sd-vanilla" "GoCA=$out/mini-sd" --figure "$out/scenes.png"
