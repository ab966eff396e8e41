#!/usr/bin/env bash
# The method on the embedded model and test set: 200 pictures, plain averages first, then GoCA; a table and a picture.
# Running it again shows the finished runs; remove runs/demo to compute them anew.
out=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../runs/demo}")
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
for model in mini-sd-vanilla mini-sd; do
  echo; echo "== main.py model=$model dataset=scenes"
  .venv/bin/python src-main/main.py "model=$model" dataset=scenes "run_dir=$out/$model"
done
.venv/bin/python scripts/compare_runs.py "vanilla=$out/mini-sd-vanilla" "GoCA=$out/mini-sd" --picture "$out/scenes.png"
