"""MeZO on a black box: a number that a program gives for a generated text, with no gradient anywhere.

Run it with `python examples/black_box.py MODEL`.

The box here counts vowels; it may as well be a compiler, a checker, or a person. Its number is the same for many texts,
so several directions are probed per step, and their ranks are compared instead of their values.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from justforward import MeZO


def share_of_vowels(text: str) -> float:
    """The black box: larger is better."""
    return sum(letter in "aeiou" for letter in text.lower()) / max(1, len(text))


def main(name: str, steps: int = 20, lr: float = 1e-4) -> list[float]:
    """The reward after every step: the mean of all probes."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    prompt = tokenizer("The film was", return_tensors="pt")
    optimizer = MeZO(model.named_parameters(), model=model, lr=lr, eps=1e-2, samples=4, shaping="rank")

    def loss() -> float:
        tokens = model.generate(**prompt, max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        return -share_of_vowels(tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :]))

    return [-(optimizer.step(loss) or 0.0) for _ in range(steps)]


if __name__ == "__main__":
    rewards = main(sys.argv[1])
    print(f"reward {rewards[0]:.3f} -> {rewards[-1]:.3f}")
