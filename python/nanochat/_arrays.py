"""Floats of the library as NumPy arrays, where NumPy is installed, else as memory views of the same shape."""

from __future__ import annotations

from typing import Any


def floats(data: bytes, *shape: int) -> Any:
    """Bytes of float32 as an array of a shape."""
    try:
        import numpy
    except ImportError:
        return memoryview(data).cast("f", shape) if data else memoryview(b"").cast("f")
    return numpy.frombuffer(data, dtype=numpy.float32).reshape(shape)
