"""What is made of the measured losses: projected gradients (`estimate`), and what is descended along.

May import `optim.log`. Start with `estimate`, then `base`.
"""
