#!/usr/bin/env bash
# The lower ends of requirements.txt: a fresh environment with the lowest versions that it admits, one picture segmented
# there, and the tests of the method.      bash scripts/check_versions.sh [FOLDER]       (minutes; downloads packages)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$(realpath "${1:-$(mktemp -d)}")
python=$(command -v python3.11 || command -v python3)
mkdir -p "$folder/source" "$folder/work"
git ls-files -z --cached --others --exclude-standard | xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' - \
  | tar --null -T - -c | tar -x -C "$folder/source" # built from a copy: nothing is left in this folder
"$python" -m venv "$folder/venv"
bin="$folder/venv/bin"
"$bin/pip" install --quiet uv
named=$(sed -e 's/#.*//' -e 's/[<>=].*//' requirements.txt | grep -v '^ *$' | grep -v '^torch$' | paste -sd '|')
"$bin/uv" pip compile --quiet --no-header --no-annotate --python "$bin/python" --resolution lowest-direct requirements.txt \
  | grep -E "^($named)==" > "$folder/lowest.txt" # torch is pinned, and which build of it is pip's to choose
"$bin/pip" install --quiet --constraint "$folder/lowest.txt" "$folder/source" pytest hypothesis
cat "$folder/lowest.txt"
(cd "$folder/work" && "$bin/goca" doctor)
cd "$folder/source"
"$bin/python" -m pytest -p no:cacheprovider tests/test_{segmenter,families,extractor,cli,prompts_annotate}.py
echo "the lowest versions serve"
