#!/usr/bin/env bash
# Test both ends of the version ranges in setup.py. For each end, installs a copy of this folder into a new environment,
# runs `goca doctor` on one image and the tests of the method. Takes minutes and downloads packages.
#     bash scripts/check_versions.sh [lowest|newest|both] [FOLDER]        PYTHON=python3.13 chooses the interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ends="${1:-both}"
case "$ends" in lowest | newest) ;; both) ends="lowest newest" ;; *) echo "expected lowest, newest or both; found $ends" >&2; exit 2 ;; esac
folder=$(realpath -m "${2:-$(mktemp -d)}")
python=$(command -v "${PYTHON:-python3.11}" || command -v python3)
mkdir -p "$folder/source" "$folder/work"
git ls-files -z --cached --others --exclude-standard | xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' - \
  | tar --null -T - -c | tar -x -C "$folder/source" # nothing is left in this folder
for end in $ends; do
  "$python" -m venv "$folder/$end"
  bin="$folder/$end/bin"
  : > "$folder/$end.txt"
  if [ "$end" = lowest ]; then
    "$bin/pip" install --quiet uv
    "$bin/uv" pip compile --quiet --no-header --no-annotate --python "$bin/python" --resolution lowest-direct \
      "$folder/source/setup.py" > "$folder/resolved.txt"
    # pins for what setup.py names; pip chooses the packages that these need in turn
    named=$(sed -n '/^REQUIRES = \[/,/^\]/s/^ *"\([A-Za-z0-9_-]*\).*/\1/p' setup.py | paste -sd '|')
    grep -E "^($named)==" "$folder/resolved.txt" > "$folder/$end.txt"
  fi
  "$bin/pip" install --quiet --constraint "$folder/$end.txt" "$folder/source" pytest hypothesis
  "$bin/pip" list --format=freeze | grep -E '^(torch|diffusers|transformers|numpy|pillow)=='
  (cd "$folder/work" && "$bin/goca" doctor)
  (cd "$folder/source" && "$bin/python" -m pytest -p no:cacheprovider \
    tests/test_{segmenter,families,extractor,cli,prompts_annotate}.py)
  echo "the $end versions work with $("$bin/python" --version)"
done
