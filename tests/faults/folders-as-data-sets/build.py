"""The library keeps what it read; here, where the test is."""

from pathlib import Path

import datasets.config

datasets.config.HF_DATASETS_CACHE = Path("cache").resolve()
Path("none").mkdir()
