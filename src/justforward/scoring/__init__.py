"""One engine scores continuations after prompts, for evaluation and for training objectives alike."""

from justforward.scoring.engine import Scores, ScoringEngine
from justforward.scoring.plan import Plan, make_plan

__all__ = ["Plan", "Scores", "ScoringEngine", "make_plan"]
