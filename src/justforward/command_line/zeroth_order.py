"""The arguments of training with forward passes: the estimator and its parts, rewards in place of a loss."""

from __future__ import annotations

import dataclasses

from justforward.command_line.fields import MEZO, REWARD, arg
from justforward.optim.methods import METHODS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZerothOrderArguments:
    """Those of `--trainer zo` and `guided`."""

    zo_method: str = arg(
        MEZO,
        "mezo",
        "What a step is: a combination of the arguments below with the settings of its source (docs/estimators.md); "
        "each of them can be given as well, and wins.",
        choices=tuple(METHODS),
    )
    zo_directions: str | None = arg(
        MEZO,
        None,
        "Where directions come from: dense (a number for every weight), low_rank, subspace, outer, flipped, sparse, "
        "cone. none: the method's.",
        choices=("dense", "low_rank", "subspace", "outer", "flipped", "sparse", "cone"),
    )
    zo_rule: str | None = arg(
        MEZO,
        None,
        "What is made of the estimates: sgd, sign, momentum, adam, or moments rebuilt from the log of the last steps. "
        "none: the method's.",
        choices=("sgd", "sign", "momentum", "adam", "rebuilt_momentum", "rebuilt_adam"),
    )
    zo_sides: int = arg(
        MEZO,
        2,
        "2: two forward passes for every direction, on both sides of the weights. 1: one for every direction, and one "
        "at the weights.",
    )
    zo_split: bool = arg(
        MEZO,
        False,
        "Every direction probes a share of the batch of its own, all in the same two forward passes: --zo_samples "
        "directions cost no more than one.",
    )
    zo_rank: int | None = arg(MEZO, None, "Of low_rank, subspace and outer: the rank. none: the method's, as below.")
    zo_refresh: int | None = arg(MEZO, None, "Of low_rank and subspace: steps until a new subspace is drawn.")
    zo_sparsity: float | None = arg(MEZO, None, "Of sparse: the share of weights that are left alone.")
    zo_angle: float | None = arg(MEZO, None, "Of cone: its half angle around the momentum, in radians.")
    zo_beta: float | None = arg(MEZO, None, "Of cone: decay of the momentum.")
    zo_beta1: float | None = arg(MEZO, None, "Of momentum and adam, rebuilt or not: decay of the first moment.")
    zo_beta2: float | None = arg(MEZO, None, "Of adam, rebuilt or not: decay of the second moment.")
    zo_window: int | None = arg(MEZO, None, "Of rebuilt moments: steps that they are made of.")
    zo_eps: float = arg(
        MEZO,
        1e-3,
        "Distance of the two probes from the weights: the loss is measured at theta + eps z and theta - eps z. "
        "auto: a probe of about 200 forward passes before training finds it.",
    )
    zo_samples: int = arg(
        MEZO, 1, "Directions per step (n-SPSA): twice as many forward passes each, for a less noisy step."
    )
    zo_direction_groups: int = arg(
        MEZO,
        1,
        "Of several processes: into how many groups they are split, each probing its share of the zo_samples "
        "directions. 1: all share the data of a step; as many as processes: each has directions of its own.",
    )
    zo_check_steps: int = arg(
        MEZO, 100, "After so many steps all processes compare checksums of their weights; 0: never."
    )
    zo_shaping: str = arg(
        MEZO,
        "none",
        "What a step differences: the losses (none), their ranks or z-scores among the step's probes, or the losses "
        "over their deviation; spread divides the projected gradients by their root mean square in the step, "
        "second_moment by that of all steps so far. All but none want another learning rate; ranks and z-scores help "
        "with coarse metrics (non_diff).",
        choices=("none", "rank", "zscore", "deviation", "spread", "second_moment"),
    )
    zo_clip: float | None = arg(MEZO, None, "Projected gradients beyond this are cut to it. none: none is.")
    zo_distribution: str = arg(
        MEZO,
        "gaussian",
        "Distribution of the directions: gaussian, as published, or rademacher (+1 or -1), cheaper to draw.",
        choices=("gaussian", "rademacher"),
    )
    zo_rounding: str = arg(
        MEZO,
        "stochastic",
        "How updates of 16-bit weights are rounded: stochastic (unbiased), nearest (loses small updates), compensated "
        "(keeps what is lost in 2 more bytes per weight).",
        choices=("stochastic", "nearest", "compensated"),
    )
    zo_probe: str = arg(
        MEZO,
        "auto",
        "How weights are moved to measure. paired, just_in_time: a layer at a time, in scratch, leaving every bit of "
        "them (paired: both signs in one forward where that is faster). copy: in place and back from a copy, for small "
        "trainable sets and for torch_compile. in_place: as published; rounds. auto: paired, and up to 64 MB copy "
        "where pairs are not faster.",
        choices=("auto", "paired", "just_in_time", "copy", "in_place"),
    )
    zo_cuda_graphs: bool = arg(
        MEZO,
        False,
        "On an NVIDIA GPU: record a probe's passes as CUDA graphs, one for each shape of batch, and replay them. For "
        "small batches, whose kernels take longer to launch than to run (docs/performance.md).",
    )
    zo_offload: str = arg(
        MEZO,
        "none",
        "For models larger than the device: cpu keeps the weights in host memory and copies a layer at a time to the "
        "device; disk keeps them in a mapped file in output_dir, which may be larger than memory too.",
        choices=("none", "cpu", "disk"),
    )
    save_trajectory: bool = arg(
        MEZO,
        False,
        "Checkpoints hold no weights: they are marks in the log of the run (trajectory.log in output_dir), from which "
        "the weights are replayed.",
    )
    zo_max_skipped: int = arg(
        MEZO,
        20,
        "Stop with an error after this many steps in a row whose loss was not finite; a single such step is skipped "
        "and logged.",
    )
    non_diff: bool = arg(
        REWARD,
        False,
        "Optimise a reward that has no gradient instead of a loss: the task's metric of the generated text or of the "
        "predicted option, or what --reward names.",
    )
    reward: str | None = arg(
        REWARD,
        None,
        "With non_diff: f1, em or accuracy; your own function as MODULE:FUNCTION, which maps (samples, outputs) to one "
        "number per sample, larger is better; a program as 'command:PROGRAM WORDS', or an endpoint's http address, "
        "which judge JSON (docs/own-reward.md). none: the task's metric.",
    )
    reward_timeout: float = arg(REWARD, 60.0, "Seconds that a program or an endpoint has for the answers to a batch.")
    reward_retries: int = arg(REWARD, 2, "Times that it is asked again where it did not answer.")
    num_completions: int = arg(
        REWARD, 1, "Texts that are sampled for each prompt; a sample's reward is their mean. More than 1 with sampling."
    )
