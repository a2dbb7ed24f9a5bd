#!/usr/bin/env python3
"""Write the TorchScript teachers of this folder, and what PyTorch makes of them.

Usage: python make_goldens.py [FOLDER]

Needs torch 2.11, numpy and safetensors. WRN-16-1 is written down anew from the published module; weights and images follow the
deterministic fill of tests/common/fill.rs, weights rounded to eighths, so that the files compress. Debug records are left out: they name
source files of the machine that wrote them.
"""

import io
import math
import os
import sys
import zipfile

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, ".."), os.path.join(HERE, "../../../launch/pytorch")]
from fill import fill  # noqa: E402
from trace_teacher import save_teacher  # noqa: E402

OUT = sys.argv[1] if len(sys.argv) > 1 else HERE
GREY = {"mean": [0.286], "std": [0.353]}


class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(i, o, 1, stride, bias=False) if i != o else None

    def forward(self, x):
        a = F.relu(self.bn1(x))
        h = self.conv2(F.relu(self.bn2(self.conv1(a))))
        if self.convShortcut is not None:
            return h + self.convShortcut(a)
        return h + x


class Group(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.layer = nn.Sequential(Block(i, o, stride), Block(o, o, 1))

    def forward(self, x):
        return self.layer(x)


class Wrn16x1(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1, self.block2, self.block3 = Group(16, 16, 1), Group(16, 32, 2), Group(32, 64, 2)
        self.bn1, self.fc = nn.BatchNorm2d(64), nn.Linear(64, classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean([2, 3]))


class Small(nn.Module):
    """A network that is none of ssdkd's: normalised pooled values, another head; `norm` makes its layers."""

    def __init__(self, norm=nn.BatchNorm2d, flat=nn.BatchNorm1d, rows=-1):
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(1, 6, 5, 4, 2), norm(6)
        self.body, self.norm2 = nn.Conv2d(6, 8, 3, 2, 1), norm(8)
        self.norm3, self.head, self.rows = flat(8), nn.Linear(8, 10), rows

    def forward(self, x):
        x = F.silu(self.norm1(self.stem(x)))
        x = F.silu(self.norm2(self.body(x)))
        return self.head(self.norm3(x.mean([2, 3]).view(self.rows, 8)))


class Watched(nn.Module):
    """Changes no logit, but calls its last batch-norm twice on bright images."""

    def __init__(self):
        super().__init__()
        self.net = Small()

    def forward(self, x):
        logits = self.net(x)
        if bool((x.mean() > 0.3).item()):
            logits = logits + 0 * self.net.norm3(torch.zeros(2, 8)).sum()
        return logits


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Small()

    def forward(self, x):
        return self.net(x.detach())


class Attention(nn.Module):
    """A vision transformer of one block, without batch-norm."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(1, 16, 8, 8), nn.LayerNorm(16)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 10)

    def forward(self, x):
        tokens = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        return self.head((tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]).mean(1))


def filled(module, first=0):
    """The fill of tests/integration/networks.rs, in eighths."""
    state = module.state_dict()
    for i, (key, value) in enumerate(state.items()):
        v = lambda: (fill(first + i, *value.shape) * 8).round() / 8
        last = key.rsplit(".")[-1]
        if last == "num_batches_tracked":
            continue
        if last in ("running_mean", "bias"):
            new = v() * 0.1
        elif last == "running_var":
            new = v() * 0.5 + 1.0
        elif value.dim() == 1:
            new = v() * 0.2 + 1.0
        else:
            new = v() * math.sqrt(3.0 / math.prod(value.shape[1:]))
        state[key] = new.to(value.dtype)
    module.load_state_dict(state)
    return module.eval()


def packed(data):
    """The same archive, compressed, without debug records."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def write(name, save):
    buffer = io.BytesIO()
    save(buffer)
    with open(os.path.join(OUT, name), "wb") as file:
        file.write(packed(buffer.getvalue()))


def statistics_loss(module, images):
    """Logits, sum over batch-norms of both norms, as the deep-inversion loss has it."""
    terms = []

    def see(layer, inputs):
        x = inputs[0]
        variance, mean = torch.var_mean(x, [0, *range(2, x.dim())], unbiased=False)
        terms.append((layer.running_var - variance).norm() + (layer.running_mean - mean).norm())

    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    logits = module(images)
    for hook in hooks:
        hook.remove()
    return logits, sum(terms)


def golden(module, side, rows):
    """In f64: logits, loss, and the gradient of loss + cross entropy to the images."""
    module = module.double()
    images = (fill(1_000_000, rows, 1, side, side) * 2).requires_grad_()
    logits, loss = statistics_loss(module, images)
    (loss + F.cross_entropy(logits, torch.arange(rows) % 10)).backward()
    return {"logits": logits.detach(), "loss": loss.detach().reshape(1), "gradient": images.grad}


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.manual_seed(0)
    shape = (1, 32, 32)
    images = torch.randn(2, *shape)
    wrn = lambda: filled(Wrn16x1(1, 10))
    small = lambda **kwargs: filled(Small(**kwargs))
    write("wrn16_1-manifest.pt", lambda out: save_teacher(wrn(), out, shape, **GREY))
    write("wrn16_1-scripted.pt", lambda out: torch.jit.save(torch.jit.script(wrn()), out))

    write("small-manifest.pt", lambda out: save_teacher(small(), out, shape, **GREY))
    write("small-scripted.pt", lambda out: torch.jit.save(torch.jit.script(small()), out))
    write("small-traced.pt", lambda out: torch.jit.save(torch.jit.trace(small(), images), out))
    write("small-double.pt", lambda out: torch.jit.save(torch.jit.script(small().double()), out))
    own = {"own_mean": [0.5], "own_std": [0.25]}
    write("small-own_normalisation.pt", lambda out: save_teacher(small(), out, shape, **GREY, **own))
    write("small-folded.pt", lambda out: torch.jit.save(torch.jit.freeze(torch.jit.script(plain())), out))
    group = {"norm": lambda c: nn.GroupNorm(2, c), "flat": nn.LayerNorm}
    write("group_norm-manifest.pt", lambda out: save_teacher(small(**group), out, shape, **GREY))
    write("group_norm-traced.pt", lambda out: torch.jit.save(torch.jit.trace(small(**group), images), out))
    write("small-train_mode.pt", lambda out: torch.jit.save(torch.jit.trace(small().train(), images, check_trace=False), out))
    write("small-two_rows.pt", lambda out: torch.jit.save(torch.jit.trace(small(rows=2), images), out))

    scripted = lambda module: lambda out: torch.jit.save(torch.jit.script(module), out)
    write("small-half.pt", scripted(small().half()))
    write("small-watched.pt", scripted(filled(Watched())))
    write("small-detached.pt", scripted(filled(Detached())))
    broken = small()
    broken.norm2.running_var[0] = math.nan
    write("small-nan.pt", scripted(broken))
    write("attention-manifest.pt", lambda out: save_teacher(filled(Attention()), out, shape, **GREY))

    goldens = {}
    for name, module, rows in [("wrn16_1", wrn(), 3), ("small", small(), 5)]:
        goldens |= {f"{name}.{key}": value.contiguous() for key, value in golden(module, 32, rows).items()}
    save_file(goldens, os.path.join(OUT, "goldens.safetensors"))


def plain():
    """Convolutions and batch-norms alone, as those that fold one into the other like them."""
    net = nn.Sequential(nn.Conv2d(1, 6, 5, 4, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
    return filled(net)


if __name__ == "__main__":
    main()
