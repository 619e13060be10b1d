"""How the losses along a direction are measured, and the weights left as they were.

May import `optim.directions` and `optim.distribution`. Start with `choose`; docs/precision.md says why there are
several.
"""
