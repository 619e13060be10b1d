"""Run `justforward` from a checkout, installed or not: python run.py --help."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
    from justforward.commands.cli import main

    sys.exit(main())
