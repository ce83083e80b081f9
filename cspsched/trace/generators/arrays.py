"""Arrays of the generators."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = "npt.NDArray[np.floating[Any]]"
Tokens: TypeAlias = "npt.NDArray[np.int64]"
