"""MeZO in TRL's SFTTrainer: the mixin in front of any Trainer is all it takes.

python examples/trl_sft.py MODEL
"""

from __future__ import annotations

import sys
from typing import Any

from datasets import Dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from justforward import MeZOMixin

PAIRS = [("Is it good?", " A delight."), ("Is it long?", " Far too long."), ("Who is in it?", " Nobody you know.")]


class MeZOSFTTrainer(MeZOMixin, SFTTrainer):
    """Supervised fine-tuning with forward passes only."""


def main(name: str, folder: str = "result/trl_sft", **changes: Any) -> MeZOSFTTrainer:
    """The trainer, after its run; `changes` replace settings."""
    rows = Dataset.from_list([{"prompt": prompt, "completion": answer} for prompt, answer in PAIRS * 8])
    settings: dict[str, Any] = {"max_steps": 50, "learning_rate": 1e-5, "lr_scheduler_type": "constant"}
    settings |= {"activation_checkpointing": False, "bf16": False, "logging_steps": 10, "report_to": "none"}
    args = SFTConfig(folder, **{**settings, **changes})
    trainer = MeZOSFTTrainer(model=name, args=args, train_dataset=rows, zo_eps=1e-3)
    trainer.train()
    return trainer


if __name__ == "__main__":
    print([entry["loss"] for entry in main(sys.argv[1]).state.log_history if "loss" in entry])
