#!/usr/bin/env bash
# A first run with published weights: vanilla and GoCA on a few images of a real data set, with time, memory and mIoU
# next to the paper's figure, and a report that can be attached to an issue:
#     bash scripts/first_run.sh model=sdxl dataset=voc dataset.root=/data/VOCdevkit/VOC2012
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
exec .venv/bin/python scripts/first_run.py "$@"
