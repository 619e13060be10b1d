"""A run as its log: what pins it (`recording`), and how a model is rebuilt from it (`replay`).

May import `models`, `noise` and `optim`, where the log's file format is (`optim.log`). Start with `replay`.
"""
