"""The numbers that the generator and the Go test draw alike."""

import numpy as np


def draw(name, shape, scale=1.0, shift=0.0):
    """An array of shift + scale·k/256, k odd within ±255, in the order of a hash of name.

    Powers of two for scale, and a shift of few bits, keep every value exact.
    """
    seed = np.uint32(0x811C9DC5)
    with np.errstate(over="ignore"):
        for b in name.encode():  # FNV-1a
            seed = (seed ^ np.uint32(b)) * np.uint32(0x01000193)
        x = seed + np.arange(np.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B9)
        for shift_by, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = (x ^ (x >> np.uint32(shift_by))) * np.uint32(factor)
    k = 2 * (x >> np.uint32(24)).astype(np.int64) - 255
    return (shift + scale * k.astype(np.float64) / 256).reshape(shape)


def pick(name, n, below):
    """n integers within 0 ≤ i < below, below at most 256."""
    k = (draw(name, (n,)) * 256 + 255) / 2
    return k.astype(np.int64) * below // 256
