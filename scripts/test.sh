#!/usr/bin/env bash
# The whole test suite, in two processes of one thread each; arguments go to pytest:
#   bash scripts/test.sh -k evaluation      bash scripts/test.sh -m slow      bash scripts/test.sh -n 0 -x
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" test
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "$@"
