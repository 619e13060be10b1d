"""Everything a model before training is a function of; what a trajectory log keeps to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import set_seed

from justforward.models.loading import LoadedModel, load
from justforward.models.tuning import TuningSettings, tune


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """How to load a model and make it ready for training (or, with tuning None, for evaluation).

    dtype: "float32", "float16", "bfloat16" or "int8"; seed: of what tuning starts at random.
    """

    model_name: str
    dtype: str = "float32"
    max_length: int = 2048
    bos_token_id: int | None = None
    seed: int = 0
    tuning: TuningSettings | None = None

    def build(
        self, *, device: torch.device | str = "cpu", auto_device: bool = True, trust_remote_code: bool = False
    ) -> LoadedModel:
        """Load and tune. Raises ValueError, in one line, for what the user can mend."""
        int8 = self.dtype == "int8"
        # With int8, the dtype of what is not quantised.
        dtype = getattr(
            torch, "float32" if int8 and torch.device(device).type == "cpu" else "bfloat16" if int8 else self.dtype
        )
        set_seed(self.seed)
        loaded = load(
            self.model_name,
            dtype=dtype,
            int8=int8,
            max_length=self.max_length,
            bos_token_id=self.bos_token_id,
            auto_device=auto_device,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        if self.tuning is None:
            return loaded
        set_seed(self.seed)
        return tune(loaded, self.tuning)

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads."""
        values = asdict(self)
        if self.tuning is not None:  # logs made before these could be chosen are the same job's
            values["tuning"] = {k: v for k, v in values["tuning"].items() if k not in ("blocks", "stream") or v}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelRecipe:
        """The recipe of a log's header."""
        tuning = values.get("tuning")
        return cls(**{**values, "tuning": None if tuning is None else TuningSettings(**tuning)})
