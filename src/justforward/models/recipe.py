"""Everything a model before training is a function of; what a trajectory log keeps to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from justforward.models.adapters import adapter_folder, base_of, kind_of, put_on
from justforward.models.loading import LoadedModel, load
from justforward.models.tuning import TuningSettings, merge_lora, train_blocks, tune


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """How to load a model and make it ready for training (or, with tuning None, for evaluation).

    model_name: of a model, or of a saved adapter, which is put on its base; base_model: another base than it names.
    dtype: "float32", "float16", "bfloat16" or "int8"; seed: of what tuning starts at random.
    """

    model_name: str
    dtype: str = "float32"
    max_length: int = 2048
    bos_token_id: int | None = None
    seed: int = 0
    tuning: TuningSettings | None = None
    base_model: str | None = None

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
        folder = adapter_folder(self.model_name)
        if folder is None and self.base_model is not None:
            raise ValueError(f"--base_model is for the name of an adapter, and {self.model_name} is none: leave it out")
        loaded = load(
            self.model_name if folder is None else base_of(folder, self.base_model),
            dtype=dtype,
            int8=int8,
            max_length=self.max_length,
            bos_token_id=self.bos_token_id,
            auto_device=auto_device,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        if folder is not None:
            return self._adapted(loaded, folder)
        if self.tuning is None:
            return loaded
        set_seed(self.seed)
        return tune(loaded, self.tuning)

    def _adapted(self, loaded: LoadedModel, folder: Path) -> LoadedModel:
        """The adapter on its base: to be evaluated, to be trained further, or merged and the whole trained."""
        kind, tuning = kind_of(folder), self.tuning
        if tuning is None or tuning.method == kind:
            found = put_on(loaded, folder, trained=tuning is not None)
            if tuning is not None and tuning.blocks is not None:
                train_blocks(found.model, tuning.blocks)
            return found
        if kind != "lora":
            raise ValueError(
                f"--model_name {self.model_name}: a prefix is trained further with --prefix_tuning, and not by "
                f"{tuning.method} tuning: give that, or another model"
            )
        merged = replace(loaded, model=merge_lora(put_on(loaded, folder, trained=False).model))
        set_seed(self.seed)
        return tune(merged, tuning)

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads."""
        values = asdict(self)
        if self.tuning is not None:  # logs made before these could be chosen are the same job's
            values["tuning"] = {k: v for k, v in values["tuning"].items() if k not in ("blocks", "stream") or v}
        if self.base_model is None:
            del values["base_model"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelRecipe:
        """The recipe of a log's header."""
        tuning = values.get("tuning")
        return cls(**{**values, "tuning": None if tuning is None else TuningSettings(**tuning)})
