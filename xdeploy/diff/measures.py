"""How far two forms of one layer are apart: real values by cosine and noise, codes by their difference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Int8

SQNR_LIMIT = 200.0  # dB told where the noise is zero or below float32's own


def real_distance(exact: NDArray[Any], other: NDArray[Any]) -> dict[str, Any]:
    """Cosine and signal-to-noise ratio of `other` against `exact`, arrays of one shape (N, ...).

    Returns:
        cosine (-1..1; 1 where both are zero), sqnr_db: 10 log10(sum exact^2 / sum (exact - other)^2), at most 200,
        and max: the largest difference in relation to the largest |exact|.
    """
    a, b = exact.astype(np.float64).reshape(-1), other.astype(np.float64).reshape(-1)
    signal, noise = float(a @ a), float((a - b) @ (a - b))
    norm = (signal * float(b @ b)) ** 0.5
    ratio = min(signal / noise, 10 ** (SQNR_LIMIT / 10)) if noise > 0 else 10 ** (SQNR_LIMIT / 10)
    top = float(np.abs(a).max(initial=0.0)) or 1.0
    return {
        "cosine": float(np.clip(a @ b / norm, -1.0, 1.0)) if norm > 0 else float(signal == float(b @ b)),
        "sqnr_db": 10.0 * float(np.log10(ratio)) if ratio > 0 else -SQNR_LIMIT,
        "max": float(np.abs(a - b).max(initial=0.0)) / top,
    }


def code_distance(a: Int8, b: Int8) -> dict[str, Any]:
    """Difference of int8 codes, arrays of one shape (N, ...).

    Returns:
        max_difference (codes), equal (share, 0..1), and where the largest difference stands first: sample and index
        (h, w, c) or (f,), both None where all are equal.
    """
    gap = np.abs(a.astype(np.int16) - b.astype(np.int16))
    most = int(gap.max(initial=0))
    place = [int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape)] if most else None
    return {
        "max_difference": most,
        "equal": float((gap == 0).mean()),
        "sample": place[0] if place else None,
        "index": place[1:] if place else None,
    }
