"""Histogram landmarks of an image (Nyúl and Udupa 1999; Nyúl, Udupa, Zhang 2000).

The landmarks are the 1st, the tens' and the 99th percentile of the image's values, or of those above its mean, which leaves air
out.
"""

from __future__ import annotations

import numpy as np

PERCENTILES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)


def foreground(values: np.ndarray) -> np.ndarray:
    """float [N], the values above the mean; all of them when none is (an image without contrast)."""
    flat = np.ravel(values)
    above = flat[flat > flat.mean()]
    return above if above.size else flat


def landmarks_of(values: np.ndarray) -> np.ndarray:
    """float64 [11]: the values at `PERCENTILES`, ascending, in the image's units."""
    return np.percentile(np.ravel(values).astype(np.float64), PERCENTILES)
