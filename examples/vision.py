"""MeZO trains any PyTorch module: here a small classifier of handwritten digits.

python examples/vision.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from justforward import MeZO


def main(steps: int = 1500) -> float:
    """Accuracy on 297 held-out digits."""
    torch.manual_seed(0)
    images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    images, labels = images.float() / 16, labels.long()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = MeZO(model.named_parameters(), lr=1e-2, eps=1e-3, samples=4)
    for _ in range(steps):
        chosen = torch.randint(1500, (128,))
        optimizer.step(lambda rows=chosen: nn.functional.cross_entropy(model(images[rows]), labels[rows]))
    with torch.no_grad():
        return (model(images[1500:]).argmax(1) == labels[1500:]).double().mean().item()


if __name__ == "__main__":
    print(f"accuracy {main():.3f}")
