"""Measurements: `python -m bench` runs them all, `python -m bench.NAME` one. Each prints one JSON line per figure."""

import justforward  # noqa: F401  before transformers: it holds back what torchao would say
