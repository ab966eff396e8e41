"""`python -m goca` is the console command `goca`."""

import sys

from goca.cli import main

if __name__ == "__main__":
    sys.exit(main())
