#!/usr/bin/env python3
"""Write pillow.json: checksums of made pictures resized by Pillow, bilinear and nearest.

Usage: python make_goldens.py

Needs pillow and numpy. A row: channels, size before, size after (width, height), SHA-256 of the bilinear and of the nearest bytes.
"""

import hashlib
import json
import os

import numpy as np
from PIL import Image


def picture(channels, width, height):
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    values = ((41 * x * x + 23 * y * y + 77 * c + x * y) % 256).astype(np.uint8)
    return Image.fromarray(values[:, :, 0] if channels == 1 else values)


def checksum(image):
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


CASES = [
    (3, (640, 480), (341, 256)),
    (3, (100, 70), (365, 256)),
    (1, (97, 31), (32, 32)),
    (3, (33, 64), (33, 20)),
    (1, (5, 7), (11, 13)),
    (3, (481, 641), (256, 341)),
]
rows = []
for channels, before, after in CASES:
    bilinear = picture(channels, *before).resize(after, Image.Resampling.BILINEAR)
    nearest = picture(1, *before).resize(after, Image.Resampling.NEAREST)
    rows.append([channels, before, after, checksum(bilinear), checksum(nearest)])
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "pillow.json"), "w") as file:
    file.write("[\n" + ",\n".join("  " + json.dumps(row) for row in rows) + "\n]\n")
