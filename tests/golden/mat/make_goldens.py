#!/usr/bin/env python3
"""Write small MAT-files of version 5 in the form of SVHN's second format.

Usage: python make_goldens.py

Needs scipy and numpy; the files here were written with scipy 1.17.1. Pixel (y, x) of channel c of image n is (7y + 3x + 50c + 11n) mod 256.
"""

import os

import numpy as np
from scipy.io import savemat

here = os.path.dirname(os.path.abspath(__file__))
y, x, c, n = np.meshgrid(np.arange(32), np.arange(32), np.arange(3), np.arange(3), indexing="ij")
images = ((7 * y + 3 * x + 50 * c + 11 * n) % 256).astype(np.uint8)
labels = np.array([[1], [10], [9]])
savemat(os.path.join(here, "packed.mat"), {"X": images, "y": labels.astype(np.uint8)}, do_compression=True)
savemat(os.path.join(here, "plain_double.mat"), {"X": images, "y": labels.astype(np.float64)})
savemat(os.path.join(here, "other.mat"), {"text": "words", "cell": np.array([[1], "a"], dtype=object), "z": np.array([[1 + 2j]])})
savemat(os.path.join(here, "grey.mat"), {"X": images[:, :, :, 0], "y": labels})
