#!/usr/bin/env bash
# The first hour with published weights: a few images of a real set by plain averages and by GoCA, with time, memory and
# mIoU beside the paper's figure, and a report that can be attached to an issue:
#     bash scripts/first_run.sh model=sdxl dataset=voc dataset.root=/data/VOCdevkit/VOC2012
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
exec .venv/bin/python scripts/first_run.py "$@"
