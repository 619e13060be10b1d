"""MeZOTrainer on a `datasets` dataset: the Hugging Face Trainer's loop, logs and checkpoints, without backward passes.

python examples/hf_trainer.py MODEL
"""

from __future__ import annotations

import sys
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, TrainingArguments

from justforward import MeZOTrainer

SENTENCES = ["The film was a delight.", "The plot was thin.", "I laughed all the way.", "I left before the end."]


def main(name: str, folder: str = "result/hf_trainer", **changes: Any) -> MeZOTrainer:
    """The trainer, after its run; `changes` replace training arguments."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = Dataset.from_dict({"text": SENTENCES * 8})
    rows = rows.map(lambda row: tokenizer(row["text"]), remove_columns=["text"])
    settings: dict[str, Any] = {"max_steps": 50, "learning_rate": 1e-5, "lr_scheduler_type": "constant"}
    trainer = MeZOTrainer(
        model=AutoModelForCausalLM.from_pretrained(name, dtype="float32"),
        args=TrainingArguments(folder, **{**settings, "logging_steps": 10, "report_to": "none", **changes}),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        zo_eps=1e-3,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    print([entry["loss"] for entry in main(sys.argv[1]).state.log_history if "loss" in entry])
