# Sourced by demo.sh and test.sh: creates .venv with the tested versions of constraints.txt, and updates it when
# constraints.txt or setup.py changes. The argument names an extra of setup.py: `. scripts/setup.sh test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra="${1:-}"
stamp=".venv/.goca-${extra:-base}"
wanted=$(cat constraints.txt setup.py | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  python=$(command -v python3.11 || command -v python3) || { echo "Python 3.11 or newer is needed." >&2; exit 1; }
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; found $("$python" --version)." >&2; exit 1; }
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  echo "Setting up .venv (a few minutes the first time) ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".${extra:+[$extra]}" \
    2> .venv/pip.log || { cat .venv/pip.log >&2; exit 1; }
  # a clone called goca must not hide the package from scripts that run in its parent folder (docs/faq.md)
  packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  printf '%s\n' "$PWD/src-main" "$PWD/install" > "$packages/goca-sources.pth"
  echo "$wanted" > "$stamp"
fi
