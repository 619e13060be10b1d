"""Prompts -> token rows -> log-probabilities of their continuations, for evaluation and for training alike.

May import `optim` (the scored head, shards) and `tasks`. Start with `prompts`, then `plan` and `engine`.
"""

from justforward.scoring.engine import Scores, ScoringEngine
from justforward.scoring.plan import Plan, make_plan

__all__ = ["Plan", "Scores", "ScoringEngine", "make_plan"]
