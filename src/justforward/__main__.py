"""`python -m justforward`."""

import sys

from justforward.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
