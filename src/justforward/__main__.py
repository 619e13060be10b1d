"""`python -m justforward`."""

import sys

from justforward.cli import main

if __name__ == "__main__":
    sys.exit(main())
