"""Everything a model before training is a function of; what a trajectory log keeps to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from transformers import set_seed

from justforward.models.adapters import adapter_folder, base_of, kind_of, put_on
from justforward.models.loading import LoadedModel, load
from justforward.models.logged import apply_log, find_log
from justforward.models.quantised import PACKAGES
from justforward.models.tuning import TuningSettings, merge_lora, train_blocks, tune
from justforward.optim.log import Trajectory

DTYPE_FLAGS = {
    "float32": "none of the --load_ arguments",
    **{dtype: f"--load_{dtype}" for dtype in ("float16", "bfloat16", "int8", "4bit")},
}


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """How to load a model and make it ready for training (or, with tuning None, for evaluation).

    model_name: of a model, of a saved adapter, which is put on its base, or of a run's log, which is replayed;
    base_model: another base than the last two name.
    dtype: "float32", "float16", "bfloat16", "int8" or "4bit"; seed: of what tuning starts at random.
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
        quantised = self.dtype if self.dtype in PACKAGES else None
        # 4 bits are multiplied in bfloat16 also by a CPU that has it.
        rest = "float32" if self.dtype == "int8" and torch.device(device).type == "cpu" else "bfloat16"
        dtype = getattr(torch, rest if quantised else self.dtype)
        set_seed(self.seed)
        if (named := find_log(self.model_name)) is not None:
            return self._replayed(*named, device=device, auto_device=auto_device, trust_remote_code=trust_remote_code)
        folder = adapter_folder(self.model_name)
        if folder is None and self.base_model is not None:
            raise ValueError(
                f"--base_model is for the name of an adapter or of a run's log, and {self.model_name} is none: "
                "leave it out"
            )
        loaded = load(
            self.model_name if folder is None else base_of(folder, self.base_model),
            dtype=dtype,
            quantised=quantised,
            max_length=self.max_length,
            bos_token_id=self.bos_token_id,
            auto_device=auto_device,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        if folder is None:
            return self._tuned(loaded)
        kind, tuning = kind_of(folder), self.tuning
        return self._adapted(put_on(loaded, folder, trained=tuning is not None and tuning.method == kind), kind)

    def _replayed(self, log: Trajectory, to: int, **places: Any) -> LoadedModel:
        """The model after the logged steps, ready for what this recipe asks."""
        told = log.header.get("recipe")
        if told is None:
            raise ValueError(f"--model_name {self.model_name}: its log does not tell how its model was made")
        start = self.from_json(told)
        if start.dtype != self.dtype:
            raise ValueError(
                f"--model_name {self.model_name}: a log is replayed in the run's own dtype, which is {start.dtype} "
                f"and not {self.dtype}: give {DTYPE_FLAGS[start.dtype]}"
            )
        start = replace(start, max_length=self.max_length, bos_token_id=self.bos_token_id)
        if self.base_model is not None:
            start = replace(start, **{"base_model" if start.base_model else "model_name": self.base_model})
        loaded = start.build(**places)
        apply_log(loaded.model, log, to, option="--base_model", quiet=None)
        if not isinstance(loaded.model, PeftModel):
            return self._tuned(loaded)
        return self._adapted(loaded, "lora" if loaded.model.peft_type == "LORA" else "prefix")

    def _tuned(self, loaded: LoadedModel) -> LoadedModel:
        if self.tuning is None:
            return loaded
        set_seed(self.seed)
        return tune(loaded, self.tuning)

    def _adapted(self, loaded: LoadedModel, kind: str) -> LoadedModel:
        """A model with an adapter on it: to be evaluated, to be trained further, or merged and the whole trained."""
        tuning = self.tuning
        if tuning is None or tuning.method == kind:
            if tuning is not None and tuning.blocks is not None:
                train_blocks(loaded.model, tuning.blocks)
            return loaded
        if kind != "lora":
            raise ValueError(
                f"--model_name {self.model_name}: a prefix is trained further with --prefix_tuning, and not by "
                f"{tuning.method} tuning: give that, or another model"
            )
        return self._tuned(replace(loaded, model=merge_lora(loaded.model)))

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
