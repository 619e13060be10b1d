"""Measurements: `python -m bench` runs them all, `python -m bench.NAME` one. Each prints one JSON line per figure."""
