"""See the package."""

import sys

from bench.gpu import main

sys.exit(main(sys.argv[1:]))
