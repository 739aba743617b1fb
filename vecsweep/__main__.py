"""`python -m vecsweep`, the same as the command `vecsweep`."""

import sys

from vecsweep.cli import main

if __name__ == "__main__":
    sys.exit(main())
