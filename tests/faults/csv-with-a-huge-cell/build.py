"""A cell longer than what Python's csv module takes by itself."""

from pathlib import Path

Path("big.csv").write_text("text,label\n" + "very " * 28_000 + "fine,1\ndull,0\n")
