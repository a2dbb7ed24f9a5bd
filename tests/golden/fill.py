"""The deterministic fill of tests/common/fill.rs, for the scripts that make golden values."""

import math

import numpy as np
import torch


def fill(i, *shape):
    """v(i, j) in [-1, 1), exact in f32."""
    count = math.prod(shape)
    z = (np.uint64(i << 32) + np.arange(count, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return torch.from_numpy(((z >> np.uint64(40)).astype(np.float64) - 2**23) / 2**23).reshape(shape)
