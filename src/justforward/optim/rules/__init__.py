"""What is made of the measured losses: projected gradients (`estimate`), and moves of the weights (`sgd`).

May import `optim.log`. Start with `estimate`.
"""
