"""Models: found and loaded, and made ready to train (all weights, LoRA, prefix, head).

May import `registry`. Start with `loading`; `tuning` has a function for each way to train.
"""
