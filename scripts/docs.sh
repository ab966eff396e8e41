#!/usr/bin/env bash
# Build the documentation and the API reference as a site in site/. A broken link or an unknown name is an error.
#     bash scripts/docs.sh            bash scripts/docs.sh serve        (http://127.0.0.1:8000, rebuilt on changes)
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" docs
export NO_MKDOCS_2_WARNING=1
if [ "${1:-build}" = serve ]; then exec .venv/bin/mkdocs serve --strict; fi
exec .venv/bin/mkdocs build --strict --quiet
