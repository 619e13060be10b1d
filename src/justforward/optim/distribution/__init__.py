"""A model and its steps over several processes and devices: ranks, shards, weights kept on the host.

May import `optim.scored_head`. Start with `ranks`.
"""
