#!/usr/bin/env bash
# The whole test suite; arguments go to pytest:  bash scripts/test.sh -k evaluation,  bash scripts/test.sh -m slow
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" test
exec .venv/bin/python -m pytest "$@"
