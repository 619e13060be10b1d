"""The GPU noise kernel, compiled ahead of time for Ampere and Hopper: that it builds, its size, and no fused products.

Run: python -m bench.build
Needs Triton (pip install triton), which brings its own assembler, and no GPU.
"""

from __future__ import annotations

import importlib
import itertools
from typing import Any

from bench.common import report

NEEDS = "triton"
CAPABILITIES = (80, 90)
DTYPES = ("*fp32", "*bf16", "*fp16")


def variants(modes: dict[str, int]) -> list[dict[str, Any]]:
    """Every combination that a launch may ask for."""
    found = []
    for dtype, (name, mode), binary in itertools.product(DTYPES, modes.items(), (False, True)):
        if dtype == "*fp32" and name in ("stochastic", "compensated"):
            continue
        for rows, mirror in (
            ((False, False), (False, True), (True, False), (True, True)) if name == "nearest" else ((False,) * 2,)
        ):
            found.append(
                {
                    "dtype": dtype,
                    "mode": mode,
                    "residuals": name == "compensated",
                    "binary": binary,
                    "rows": rows,
                    "mirror": mirror,
                }
            )
    return found


def compiled(kernel: Any, blocks: int, variant: dict[str, Any], capability: int) -> Any:
    """One variant for one capability."""
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    dtype = variant["dtype"]
    signature = {"dst": dtype, "src": dtype, "mirror": dtype, "residuals": "*i16", "rows": "*i64"}
    signature |= {"size": "i64", "start": "i64", "key_low": "i32", "key_high": "i32", "keep": "fp32", "scale": "fp32"}
    constants: dict[str, Any] = {name: None for name in ("mirror", "residuals", "rows") if not variant[name]}
    constants |= {"MODE": variant["mode"], "BINARY": variant["binary"], "ROWS": variant["rows"]}
    constants |= {"MIRROR": variant["mirror"], "BLOCKS": blocks}
    types = {name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names}
    at = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = compiler.ASTSource(fn=kernel, signature=types, constexprs=at)
    return importlib.import_module("triton").compile(source, target=target, options={"enable_fp_fusion": False})


def main() -> None:
    """Print one line per capability."""
    module = importlib.import_module("justforward.noise.triton")
    for capability in CAPABILITIES:
        built = [compiled(module._run, module.BLOCKS, v, capability) for v in variants(module.MODES)]
        fused = sum(b.asm["ptx"].count("fma.rn.f32") for b in built)
        sizes = [len(b.asm["cubin"]) for b in built]
        report(
            f"GPU noise kernel, sm_{capability}", variants=len(built), fused_products=fused, largest_bytes=max(sizes)
        )
        assert fused == 0, "a fused product rounds once where the definition rounds twice"


if __name__ == "__main__":
    main()
