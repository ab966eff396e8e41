"""Write the report of a finished run again, from its results.json and thumbnails.

python3 scripts/make_report.py runs/mini-sd-scenes-paper
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from goca.benchmark.run_store import RunError
from goca.report.html import write_report


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    arguments = parser.parse_args(argv)
    try:
        print(write_report(arguments.run_dir))
    except RunError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
