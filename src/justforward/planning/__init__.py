"""What a model needs, from its configuration alone: bytes, operations, and which devices it fits.

May import `machine`, `models`, `optim`, `scoring` and `tasks`. Start with `memory`, whose functions are the formulas.
"""
