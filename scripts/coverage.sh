#!/usr/bin/env bash
# The test suite with branch coverage of goca and diffusion_feature; fails below 92 %. Arguments go to pytest.
# Tracing nearly doubles the time of the tests (6.5 s of processor time become 11.7 s for test_aggregation.py, 23 s become
# 43 s for test_settings.py), which is more than CI has for every change. `bash .ci/run coverage` runs this instead of
# the plain suite.
exec bash "$(dirname "${BASH_SOURCE[0]}")/test.sh" -p no:cacheprovider --cov --cov-report=term --cov-fail-under=92 "$@"
