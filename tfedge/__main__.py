"""`python -m tfedge`."""

import sys

from tfedge.cli import main

if __name__ == "__main__":
    sys.exit(main())
