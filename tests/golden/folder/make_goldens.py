#!/usr/bin/env python3
"""Write small pictures of every kind that folders hold, and what torchvision's Resize and CenterCrop make of them.

Usage: python make_goldens.py

Needs torch, torchvision, pillow and safetensors. `goldens.safetensors` has uint8 tensors [c, size, size] named FILE/RESIZE/SIZE, of
`Compose([Resize(RESIZE), CenterCrop(SIZE)])` on the picture as ImageFolder's loader gives it (`convert("RGB")`), or on `convert("L")`
where c is 1.
"""

import os

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

here = os.path.dirname(os.path.abspath(__file__))


def values(channels, width, height):
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    return ((3 * x * x + 5 * y * y + 77 * c + x * y) % 256).astype(np.uint8)


def smooth(width, height):
    """Few high frequencies, as photographs have: JPEG decoders differ there."""
    y, x, c = np.meshgrid(np.arange(height) / height, np.arange(width) / width, np.arange(3), indexing="ij")
    return (127 + 60 * np.sin(4 * x + c) + 60 * np.cos(5 * y - 2 * c)).astype(np.uint8)


rgb = Image.fromarray(values(3, 51, 38))
pictures = {
    "rgb.png": rgb,
    "tall.png": Image.fromarray(values(3, 29, 50)),
    "grey.png": Image.fromarray(values(1, 40, 31)[:, :, 0]),
    "alpha.png": Image.fromarray(values(4, 33, 33), "RGBA"),
    "palette.png": rgb.quantize(16),
    "photo.jpg": Image.fromarray(smooth(61, 47)),
    "grey_photo.jpeg": Image.fromarray(smooth(44, 52)[:, :, 0]),
}
goldens = {}
for name, picture in pictures.items():
    path = os.path.join(here, name)
    picture.save(path, **({"quality": 92} if "jp" in name.split(".")[1] else {}))
    for resize, size in [(24, 24), (28, 24), (29, 24), (64, 48)]:
        see = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size)])
        with Image.open(path) as file:
            seen = see(file.convert("RGB"))
        goldens[f"{name}/{resize}/{size}"] = torch.from_numpy(np.asarray(seen).copy()).permute(2, 0, 1).contiguous()
with Image.open(os.path.join(here, "rgb.png")) as file:
    seen = transforms.Compose([transforms.Resize(28), transforms.CenterCrop(24)])(file.convert("L"))
    goldens["rgb.png as grey/28/24"] = torch.from_numpy(np.asarray(seen).copy())[None]
# Large ones are kept by every third row and column.
goldens = {key: value if value.shape[1] < 48 else value[:, ::3, ::3].contiguous() for key, value in goldens.items()}
made_with = {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__}
save_file(goldens, os.path.join(here, "goldens.safetensors"), metadata=made_with)
