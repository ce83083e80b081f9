"""How weights are stored: in 16 bits, or in fewer with scales that groups of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from cspsched.errors import InputError

PLAIN = "bf16"
KV_CACHE_BYTES = {"bf16": 2, "fp8": 1}
"""Bytes of a KV element by the type of the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """Storage of the weights of linear layers.

    Attributes
    ----------
    bits
        Of one weight.
    scale_bits, group
        Bits of the scale (and zero point) that so many weights share.
    """

    title: str
    bits: int
    scale_bits: int = 0
    group: int = 1

    @property
    def bytes_per_weight(self) -> Fraction:
        """Bytes of one weight with its share of the scales."""
        return (self.bits + Fraction(self.scale_bits, self.group)) / 8


FORMATS = {
    PLAIN: WeightFormat(title="16 bit", bits=16),
    "fp8": WeightFormat(title="8-bit floats", bits=8),
    "fp8-block": WeightFormat(
        title="8-bit floats in blocks of 128 x 128", bits=8, scale_bits=32, group=128 * 128
    ),
    "int4": WeightFormat(title="4-bit integers in groups of 128", bits=4, scale_bits=20, group=128),
    "mxfp4": WeightFormat(title="4-bit floats in groups of 32", bits=4, scale_bits=8, group=32),
    "nvfp4": WeightFormat(title="4-bit floats in groups of 16", bits=4, scale_bits=8, group=16),
}
"""Formats by name: those of FP8 checkpoints with a scale a tensor or channel; DeepSeek's and Qwen's FP8;
AWQ and GPTQ with 16-bit scales and 4-bit zero points; OCP microscaling; NVIDIA's for Blackwell."""
ALIASES = {"awq": "int4", "gptq": "int4", "w4a16": "int4", "fp4": "nvfp4"}
"""Other words for a format in the names of checkpoints."""
BLOCK_OWNERS = ("qwen", "deepseek-ai", "minimaxai")
"""Whose FP8 checkpoints have a scale a block (`weight_block_size` in their config.json)."""


def require_format(name: str, where: str) -> None:
    """Refuse a format that there is not.

    Raises
    ------
    InputError
        Names those that there are.
    """
    if name not in FORMATS:
        raise InputError(f"{where} is {name!r}, expected one of {', '.join(FORMATS)}")


def format_of_name(words: Sequence[str], owner: str = "") -> tuple[list[str], str | None]:
    """Words of a checkpoint's name without those of a format, and the format that they mean; None if none.

    Parameters
    ----------
    words
        The name in lower case, split at its dashes.
    owner
        Whose checkpoint it is: the meaning of `fp8` depends on that.
    """
    for length in (2, 1):
        word = "-".join(words[-length:])
        name = ALIASES.get(word, word)
        if len(words) > length and name in FORMATS:
            is_block = name == "fp8" and owner.lower() in BLOCK_OWNERS
            return list(words[:-length]), "fp8-block" if is_block else name
    return list(words), None
