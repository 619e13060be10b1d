"""Where a displacement of the weights comes from.

May import `noise` and `optim.distribution`. Start with `dense`: a z of its own for every weight.
"""
