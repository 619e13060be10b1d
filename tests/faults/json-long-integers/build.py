"""Integers that Python does not read by itself."""

from pathlib import Path

row = f'{{"text": "fine", "label": 1, "by": {"9" * 5000}}}'
Path("a.jsonl").write_text('{"text": "fine", "label": 1}\n' + row)
Path("a.json").write_text(f"[{row}]")
Path("label.jsonl").write_text('{"text": "fine", "label": "' + "1" * 5000 + '"}')
Path("long.toml").write_text('name = "t"\nsplit = { validation = ' + "1" * 5000 + " }\n")
