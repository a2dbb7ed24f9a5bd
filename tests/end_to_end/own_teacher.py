#!/usr/bin/env python3
"""A teacher that is none of ssdkd's networks, in plain PyTorch, and what a student exported to ONNX gets right.

    own_teacher.py train IMAGES LABELS OUT.pt      trains `rings()` and writes its state_dict
    own_teacher.py score MODEL.onnx IMAGES LABELS  top-1 of an ONNX file, by onnxruntime

IMAGES and LABELS are Fashion-MNIST's IDX files (gzip).
"""

import gzip
import sys

import numpy as np

# Constants of the data set (docs/teachers.md): what ssdkd normalises by.
MEAN, STD = 0.2860, 0.3530


def read(images, labels):
    """Images [n, 1, 32, 32], zero-padded and normalised as ssdkd gives them to a network, and labels [n]."""
    with gzip.open(images) as file:
        x = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(labels) as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    x = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2))).astype(np.float32) / 255
    return (x - MEAN) / STD, y


def rings(width=12, classes=10):
    """A small ResNet of a shape ssdkd does not have: pre-activation blocks with a 5×5 stem, SiLU, average pools and grouped convolutions."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, into, out, pool):
            super().__init__()
            self.pool = nn.AvgPool2d(2) if pool else nn.Identity()
            self.norms = nn.ModuleList([nn.BatchNorm2d(into), nn.BatchNorm2d(out)])
            self.convs = nn.ModuleList([nn.Conv2d(into, out, 3, padding=1, bias=False), nn.Conv2d(out, out, 3, padding=1, groups=4, bias=False)])
            self.short = nn.Conv2d(into, out, 1, bias=False) if into != out else nn.Identity()

        def forward(self, x):
            x = self.pool(x)
            y = x
            for norm, conv in zip(self.norms, self.convs):
                y = conv(nn.functional.silu(norm(y)))
            return self.short(x) + y

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False),
        Block(width, 2 * width, False),
        Block(2 * width, 4 * width, True),
        Block(4 * width, 4 * width, True),
        nn.BatchNorm2d(4 * width),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def train(images, labels, out, epochs=2, batch=100):
    import torch
    from torch import nn

    x, y = map(torch.from_numpy, read(images, labels))
    net = rings()
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, total_steps=steps)
    for epoch in range(epochs):
        right = 0
        for rows in torch.randperm(len(x)).split(batch):
            logits = net(x[rows])
            optimiser.zero_grad()
            nn.functional.cross_entropy(logits, y[rows]).backward()
            optimiser.step()
            schedule.step()
            right += (logits.argmax(1) == y[rows]).sum().item()
        print(f"epoch {epoch + 1}: {100 * right / len(x):.2f} % of the training images", flush=True)
    torch.save(net.state_dict(), out)


def score(model, images, labels):
    import onnxruntime

    x, y = read(images, labels)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    logits = np.concatenate([session.run(None, {name: part})[0] for part in np.array_split(x, 20)])
    print(f"{(logits.argmax(1) == y).mean():.4f}")


if __name__ == "__main__":
    {"train": train, "score": score}[sys.argv[1]](*sys.argv[2:])
