"""MeZO in a plain PyTorch loop: a causal language model learns a few sentences, with forward passes only.

python examples/plain_loop.py MODEL
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from justforward import MeZO

SENTENCES = ["The film was a delight.", "The plot was thin.", "I laughed all the way.", "I left before the end."]


def main(name: str, steps: int = 50, lr: float = 1e-5) -> list[float]:
    """The loss after every step: the mean of both probes."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()  # dropout would blur the probes
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(SENTENCES, return_tensors="pt", padding=True, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = MeZO(model.named_parameters(), model=model, lr=lr, eps=1e-3, seed=0)
    return [optimizer.step(lambda: model(**batch, labels=labels).loss) or 0.0 for _ in range(steps)]


if __name__ == "__main__":
    losses = main(sys.argv[1])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
