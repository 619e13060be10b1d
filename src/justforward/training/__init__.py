"""Training: what is minimised (`objectives`, `rewards`), the Trainers that do it, and how a run goes on after a stop.

May import `models`, `optim`, `results`, `scoring`, `tasks` and `trajectory`. Start with `trainer`.
"""
