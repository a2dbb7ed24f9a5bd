#!/usr/bin/env python3
"""Write training.safetensors: optimiser steps, a synthesis call of every method, and slices of student steps, by PyTorch.

Usage: python make_goldens.py

Needs torch 2.11, numpy and safetensors. All arithmetic is f64 on inputs rounded to f32. Networks are written down anew from the
published modules, random numbers from the paper on Philox; weights and images follow the deterministic fill of tests/common/fill.rs.
"""

import math
import os
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from fill import fill  # noqa: E402

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
OUT = {}
MASK = (1 << 64) - 1


def single(t):
    """Rounded to f32."""
    return t.float().double()


class Stream:
    """Random numbers of one purpose, step and logical rank (None: of the whole job)."""

    def __init__(self, seed, purpose, step, rank=None):
        self.seed, self.step, self.lane = seed, step, purpose << 24 | (0xFFFFFF if rank is None else rank)

    def bits(self, index):
        low = 0xFFFFFFFF
        c = [index >> 1, self.lane, self.step & low, self.step >> 32]
        k = [self.seed & low, self.seed >> 32]
        for _ in range(10):
            a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = [(b >> 32) ^ c[1] ^ k[0], b & low, (a >> 32) ^ c[3] ^ k[1], a & low]
            k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
        return c[2] | c[3] << 32 if index & 1 else c[0] | c[1] << 32

    def below(self, index, bound):
        return self.bits(index) * bound >> 64

    def normals(self, count):
        unit = lambda i: (self.bits(i) >> 11) * 2.0**-53
        out = []
        for i in range(0, count + count % 2, 2):
            radius, angle = math.sqrt(-2 * math.log(1 - unit(i))), math.tau * unit(i + 1)
            out += [radius * math.cos(angle), radius * math.sin(angle)]
        return single(torch.tensor(out[:count]))

    def uniform(self, index):
        return (self.bits(index) >> 11) * 2.0**-53

    def view(self, index, shift):
        """Rows down, columns to the right, and whether to flip."""
        down, right = (self.below(4 * index + part, 2 * shift + 1) - shift for part in (0, 1))
        return down, right, self.bits(4 * index + 2) & 1 == 1


def seen_through(images, views):
    out = []
    for image, (down, right, flip) in zip(images, views):
        size, reach = image.shape[-1], 8
        padded = F.pad(image, [reach] * 4)
        moved = padded[:, reach + down : reach + down + size, reach + right : reach + right + size]
        out.append(moved.flip(-1) if flip else moved)
    return torch.stack(out)


class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), nn.Conv2d(o, o, 3, 1, 1, bias=False)
        if i != o:
            self.convShortcut = nn.Conv2d(i, o, 1, stride, bias=False)

    def forward(self, x):
        a = F.relu(self.bn1(x))
        h = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return h + (self.convShortcut(a) if hasattr(self, "convShortcut") else x)


class Wrn16x1(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1))
        self.block2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1))
        self.block3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1))
        self.bn1, self.fc = nn.BatchNorm2d(64), nn.Linear(64, classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean([2, 3]))


class Generator(nn.Module):
    def __init__(self, latent, filters, size, channels):
        super().__init__()
        self.shape, f = (2 * filters, size // 4, size // 4), filters
        self.l1 = nn.Linear(latent, 2 * f * (size // 4) ** 2)
        conv = lambda i, o, bias=False: nn.Conv2d(i, o, 3, 1, 1, bias=bias)
        up, leaky = nn.Upsample(scale_factor=2), nn.LeakyReLU(0.2)
        first = [nn.BatchNorm2d(2 * f), up, conv(2 * f, 2 * f), nn.BatchNorm2d(2 * f), leaky]
        second = [up, conv(2 * f, f), nn.BatchNorm2d(f), leaky, conv(f, channels, True), nn.Sigmoid()]
        self.conv_blocks = nn.Sequential(*first, *second)

    def forward(self, z):
        return self.conv_blocks(self.l1(z).view(-1, *self.shape))


def filled(net, first):
    """Entry i of the state_dict from v(first + i), scaled by what the entry is."""
    for i, (key, t) in enumerate(net.state_dict().items()):
        v, name = fill(first + i, *t.shape), key.rsplit(".")[-1]
        if name == "num_batches_tracked":
            continue
        elif name in ("running_mean", "bias"):
            v = v * 0.1
        elif name == "running_var":
            v = v * 0.5 + 1
        elif t.dim() == 1:
            v = v * 0.2 + 1
        else:
            v = v * math.sqrt(3 / math.prod(t.shape[1:]))
        t.copy_(single(v))
    return net


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors]).detach().clone()


def kl(student, teacher, temperature):
    log_q, log_p = ((x / temperature).log_softmax(1) for x in (student, teacher))
    return (log_p.exp() * (log_p - log_q)).sum(1) * temperature**2


def optimisers():
    for name, make in (
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9, weight_decay=0.05)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.0, betas=(0.5, 0.999))),
    ):
        p = nn.Parameter(fill(1, 37).clone())
        optimiser = make([p])
        for step, lr in enumerate((0.2, 0.1, 0.05)):
            p.grad = fill(2 + step, 37).clone()
            optimiser.param_groups[0]["lr"] = lr
            optimiser.step()
            OUT[f"{name}.{step}"] = p.detach().clone()


def synthesis():
    seed, round_, rank, b, classes, latent, temperature = 7, 25, 1, 6, 3, 8, 4.0
    mean, std, shift, lr_g, lr_z, momentum, steps = 0.25, 0.5, 2, 3e-3, 0.01, 0.9, 2
    mean, std = single(torch.tensor(mean)), single(torch.tensor(std))
    with torch.no_grad():
        teacher = filled(Wrn16x1(1, classes), 0).eval()
        student = filled(Wrn16x1(1, classes), 0).eval()
        student.fc.weight.copy_(student.fc.weight * 0.5)
        shared = filled(Generator(latent, 4, 8, 1), 100)
        working = filled(Generator(latent, 4, 8, 1), 100).train()
    for net in (teacher, student):
        net.requires_grad_(False)

    norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    taps = {}
    for i, norm in enumerate(norms):
        norm.register_forward_hook(lambda _, x, __, i=i: taps.__setitem__(i, torch.var_mean(x[0], [0, 2, 3], correction=0)))
    past = [(single(fill(300 + i, n.num_features) * 0.5 + 1), single(fill(350 + i, n.num_features) * 0.1)) for i, n in enumerate(norms)]
    counts = torch.tensor([6.0, 3.0, 1.0])

    z = Stream(seed, 3, round_, rank).normals(b * latent).view(b, latent).requires_grad_(True)
    labels = torch.tensor([Stream(seed, 4, round_, rank).below(i, classes) for i in range(b)])
    inner = torch.optim.Adam([{"params": working.parameters(), "lr": lr_g}, {"params": [z], "lr": lr_z}], betas=(0.5, 0.999))
    meta, best = 0, None
    for step in range(steps):
        images = working(z)
        views = [Stream(seed, 5, round_, rank).view(step * b + i, shift) for i in range(b)]
        seen = (seen_through(images, views) - mean) / std
        taps.clear()
        logits = teacher(seen)
        gap = 0
        for i, n in enumerate(norms):
            for now, then, target in zip(taps[i], past[i], (n.running_var, n.running_mean)):
                gap = gap + (target - ((1 - momentum) * now + momentum * then)).norm()
        top, predicted = logits.detach().softmax(1).max(1)
        phi = (1 - counts[predicted] / counts.sum()) * (1 - top) ** 2
        task = (phi * F.cross_entropy(logits, labels, reduction="none")).mean()
        theirs = student(seen)
        disagreement = ((theirs.argmax(1) == logits.argmax(1)) * kl(theirs, logits, 1.0)).mean()
        loss = 10.0 * gap + 0.4 * task - 1.1 * disagreement
        if best is None or loss < best[1]:
            best = (images.detach().clone(), loss.detach(), step)
        inner.zero_grad()
        loss.backward()
        meta = meta + flat(p.grad for p in working.parameters())
        inner.step()
    assert best[2] == steps - 1 and disagreement > 1e-3 and task > 1e-3, (best[1:], disagreement, task)
    last = {k: [t.detach().clone() for t in v] for k, v in taps.items()}
    OUT["meta_gradient"] = meta
    OUT["terms"] = torch.stack([gap, task, disagreement, phi.mean()]).detach()
    for at, name in ((0, "average.variance"), (1, "average.mean")):
        OUT[name] = torch.cat([momentum * past[i][at] + (1 - momentum) * last[i][at] for i in range(len(norms))])

    outer = torch.optim.Adam(shared.parameters(), lr=lr_g * steps, betas=(0.5, 0.999))
    at = 0
    for p in shared.parameters():
        p.grad = (meta[at : at + p.numel()] / 2).view(p.shape)
        at += p.numel()
    outer.step()
    OUT["generator"] = flat(shared.parameters())

    with torch.no_grad():
        kept, first = best[0], 1000
        logits = teacher((kept - mean) / std)
        views = [Stream(seed, 8, first + i).view(1, shift) for i in range(b)]
        moved = teacher((seen_through(kept, views) - mean) / std)
        OUT["images"], OUT["view_logits"] = kept, torch.stack([logits, moved], 1)
        OUT["confidence"] = logits.softmax(1).max(1).values
        OUT["delta"] = kl(student((kept - mean) / std), logits, temperature)


def jensen_shannon(student, teacher, temperature=3.0):
    p, q = ((x / temperature).softmax(1) for x in (student, teacher))
    mean = ((p + q) / 2).clamp(0.01, 0.99)
    half = lambda of: (mean * (mean.log() - of.clamp(0.01, 0.99).log())).sum(1)
    return ((half(p) + half(q)) / 2).mean()


def variation(x):
    pairs = [(x[..., :-1], x[..., 1:]), (x[..., :-1, :], x[..., 1:, :]), (x[..., :-1, :-1], x[..., 1:, 1:]), (x[..., 1:, :-1], x[..., :-1, 1:])]
    return sum((a - b).abs().mean() for a, b in pairs)


def local_view(image, stream, index):
    """A random resized crop, bilinear, corners on corners: from the definition, pixel by pixel."""
    size = image.shape[-1]
    number = lambda part: 40 * index + part
    flip = stream.bits(number(3)) & 1
    for attempt in range(10):
        area = size * size * (0.25 + 0.75 * stream.uniform(number(4 * attempt)))
        ratio = math.exp(math.log(0.75) + 2 * math.log(4 / 3) * stream.uniform(number(4 * attempt + 1)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 1 <= h <= size and 1 <= w <= size:
            bits = stream.bits(number(4 * attempt + 2))
            top, left = ((bits >> 32) * (size - h + 1)) >> 32, ((bits & 0xFFFFFFFF) * (size - w + 1)) >> 32
            break
    else:
        (top, left), (h, w) = (0, 0), (size, size)
    out = []
    for i in range(size):
        for j in range(size):
            y, x = top + i * (h - 1) / (size - 1), left + (size - 1 - j if flip else j) * (w - 1) / (size - 1)
            at = lambda a, b: image[:, min(a, size - 1), min(b, size - 1)]
            y0, x0 = math.floor(y), math.floor(x)
            dy, dx = y - y0, x - x0
            upper = at(y0, x0) * (1 - dx) + at(y0, x0 + 1) * dx
            lower = at(y0 + 1, x0) * (1 - dx) + at(y0 + 1, x0 + 1) * dx
            out.append(upper * (1 - dy) + lower * dy)
    return torch.stack(out, 1).view_as(image)


WEIGHTS = {"statistics": 0.7, "task": 0.9, "adversarial": 1.1, "balance": 0.5, "activation": 0.3, "variation": 0.2, "norm": 0.05, "contrast": 0.8}
COLUMNS = ("statistics", "task", "adversarial", "phi", "prior")


def other_method(name, terms, steps, start, views, labels_are, kept, disagreement=None):
    """A synthesis call of a method that SSD-KD is compared with, at WEIGHTS."""
    seed, round_, rank, b, classes, latent, shift, lr_g, lr_z = 7, 25, 1, 6, 3, 8, 2, 3e-3, 0.01
    mean, std = single(torch.tensor(0.25)), single(torch.tensor(0.5))
    with torch.no_grad():
        teacher, student = filled(Wrn16x1(1, classes), 0).eval(), filled(Wrn16x1(1, classes), 0).eval()
        student.fc.weight.copy_(student.fc.weight * 0.5)
        shared, working = filled(Generator(latent, 4, 8, 1), 100), filled(Generator(latent, 4, 8, 1), 100).train()
    features = {}
    teacher.fc.register_forward_hook(lambda _, x, __: features.__setitem__("pooled", x[0]))
    norms, taps = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)], []
    for norm in norms:
        norm.register_forward_hook(lambda n, x, _: taps.append((n, x[0])))
    for net in (teacher, student):
        net.requires_grad_(False)
    stream = lambda purpose, step=round_: Stream(seed, purpose, step, rank)
    of_step = lambda step: round_ << 32 | step
    drawn = torch.tensor([stream(4).below(i, classes) for i in range(b)])

    if start == "pixels":
        moved = [stream(17).normals(b * 64).view(b, 1, 8, 8).requires_grad_(True)]
        optimiser = torch.optim.Adam(moved, lr=lr_g, betas=(0.5, 0.99))
    else:
        z = stream(3).normals(b * latent).view(b, latent).requires_grad_(start != "trained on fixed latents")
        if start == "fresh":
            with torch.no_grad():
                for i, (key, t) in enumerate(working.state_dict().items()):
                    if key.endswith("bias"):
                        t.zero_()
                    elif key.endswith("weight"):
                        t.copy_(single(stream(13, of_step(i)).normals(t.numel()).view(t.shape) * 0.02) + (t.dim() == 1))
        groups = [{"params": working.parameters(), "lr": lr_g}] + ([{"params": [z], "lr": lr_z}] if z.requires_grad else [])
        optimiser = torch.optim.Adam(groups, betas=(0.5, 0.999))
    width = sum(n.num_features for n in norms)
    if "contrast" in terms:
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 256))
        with torch.no_grad():
            for i, p in enumerate(head.parameters()):
                p.copy_(single(fill(700 + i, *p.shape) * (math.sqrt(3 / p.shape[1]) if p.dim() == 2 else 0.1)))
        of_head = torch.optim.Adam(head.parameters(), lr=lr_g, betas=(0.9, 0.999))
        bank = single(fill(710, 4, 2 * width))

    total_gradient, best = 0, None
    for step in range(steps):
        images = moved[0] * std + mean if start == "pixels" else working(z)
        if views == "rolled":
            down, right, flip = stream(5).view(step, shift)
            seen = images.roll([-down, -right], [2, 3])
            seen = seen.flip(3) if flip else seen
        elif views == "shifted":
            seen = seen_through(images, [stream(5).view(step * b + i, shift) for i in range(b)])
        else:
            seen = images
        seen = (seen - mean) / std
        taps.clear()
        logits = teacher(seen)
        inputs, pooled = list(taps), features["pooled"]
        embedded = lambda inputs: torch.cat([x.mean([2, 3]) for _, x in inputs], 1)
        labels = logits.argmax(1) if labels_are == "pseudo" else drawn
        theirs, plain, value = student(seen), (images - mean) / std, {}
        for term in terms:
            if term == "statistics":
                gap = lambda n, x: (n.running_var - x.var([0, 2, 3], correction=0)).norm() + (n.running_mean - x.mean([0, 2, 3])).norm()
                value[term] = sum(gap(n, x) for n, x in inputs)
            elif term == "task":
                value[term] = F.cross_entropy(logits, labels)
            elif term == "adversarial":
                agree = theirs.argmax(1) == logits.argmax(1)
                value[term] = {
                    "masked": lambda: (agree * kl(theirs, logits, 1.0)).mean(),
                    "plain": lambda: kl(theirs, logits, 1.0).mean(),
                    "logits": lambda: (theirs - logits).abs().mean(),
                    "jensen_shannon": lambda: jensen_shannon(theirs, logits),
                }[disagreement]()
            elif term == "balance":
                p = logits.softmax(1).mean(0)
                value[term] = (p * p.log()).sum()
            elif term == "activation":
                value[term] = -pooled.abs().mean()
            elif term == "variation":
                value[term] = variation(plain)
            elif term == "norm":
                value[term] = plain.norm()
            elif term == "contrast":
                taps.clear()
                near = torch.stack([local_view(image, stream(16, of_step(step)), i) for i, image in enumerate(images)])
                teacher((near - mean) / std)
                near, whole = embedded(taps), embedded(inputs)
                unit = lambda x: F.normalize(head(x))
                similar = unit(torch.cat([near, bank[:, :width]])) @ unit(torch.cat([whole, bank[:, width:]])).detach().T / 0.2
                e = F.cross_entropy(similar, torch.arange(b + 4), reduction="none")
                value[term] = e[:b].mean() + e[b:].mean()
        sign = lambda term: -1 if term == "adversarial" else 1
        loss = sum(sign(term) * WEIGHTS[term] * v for term, v in value.items())
        if kept == "best" and (best is None or loss < best[1]):
            best = (images.detach().clone(), loss.detach(), torch.cat([near, whole], 1).detach() if "contrast" in terms else None)
        optimiser.zero_grad()
        loss.backward()
        if start != "pixels":
            total_gradient = total_gradient + flat(p.grad for p in working.parameters())
        optimiser.step()
        if start == "pixels":
            with torch.no_grad():
                moved[0].copy_(((moved[0] * std + mean).clamp(0, 1) - mean) / std)
        if "contrast" in terms:
            of_head.step()
            of_head.zero_grad()
    others = sum((sign(t) * WEIGHTS[t] * v for t, v in value.items() if t not in COLUMNS), torch.zeros(()))
    OUT[f"{name}.terms"] = torch.stack([value.get(t, torch.zeros(())) for t in COLUMNS[:4]] + [others]).detach()
    if kept == "best":
        OUT[f"{name}.images"] = best[0]
    elif kept == "last":
        OUT[f"{name}.images"] = (moved[0] * std + mean).detach()
    if "contrast" in terms:
        OUT[f"{name}.head"], OUT[f"{name}.remembered"] = flat(head.parameters()), best[2]
    if start == "trained on":
        moved_by = flat(working.parameters()) - flat(shared.parameters())
        OUT[f"{name}.shared"], OUT[f"{name}.generator"] = moved_by, flat(shared.parameters()) + moved_by / 2
    elif start in ("trained on fixed latents", "maml", "reptile"):
        # REPTILE goes against the way back, 67 times as far.
        way, factor = (flat(working.parameters()) - flat(shared.parameters()), -67) if start == "reptile" else (total_gradient, 1)
        OUT[f"{name}.shared"] = way
        outer, at = torch.optim.Adam(shared.parameters(), lr=lr_g * steps, betas=(0.5, 0.999)), 0
        for p in shared.parameters():
            p.grad = (factor * way[at : at + p.numel()] / 2).view(p.shape)
            at += p.numel()
        outer.step()
        OUT[f"{name}.generator"] = flat(shared.parameters())


def other_methods():
    adversarial = ("statistics", "task", "adversarial")
    other_method("fast", adversarial, 2, "trained on", "shifted", "drawn", "best", "masked")
    for meta in ("maml", "reptile"):
        other_method(f"fast_meta.{meta}", adversarial, 2, meta, "shifted", "drawn", "best", "masked")
    one_step = (1, "trained on fixed latents", "plain", "pseudo", "nothing")
    other_method("dafl", ("task", "balance", "activation"), *one_step)
    other_method("zskt", ("adversarial",), *one_step, "plain")
    other_method("dfad", ("adversarial",), *one_step, "logits")
    other_method("dfq", (*adversarial, "balance"), *one_step, "plain")
    other_method("deepinv", (*adversarial, "variation", "norm"), 3, "pixels", "rolled", "drawn", "last", "jensen_shannon")
    other_method("cmi", ("contrast", *adversarial), 2, "fresh", "shifted", "drawn", "best", "masked")


def student_slices():
    """Loss of every row; for every parameter the norm of its gradient, and its product with a fill."""
    images = single(fill(500, 5, 1, 8, 8) * 0.5 + 0.5)
    views = [(0, 0, False), (2, -1, False), (-2, 2, True), (0, 1, True), (1, 1, False)]
    weights, target = single(fill(501, 5) * 0.5 + 1), single(fill(502, 5, 3) * 3)
    labels = torch.tensor([2, 0, 1, 1, 0])
    mean, std = single(torch.tensor(0.25)), single(torch.tensor(0.5))
    seen = (seen_through(images, views) - mean) / std
    with torch.no_grad():
        asked = filled(Wrn16x1(1, 3), 0).eval()(seen)
    entropy = lambda s: F.cross_entropy(s, labels, reduction="none")
    for name, criterion in (
        ("slice", lambda s: kl(s, target, 4.0)),
        ("slice.distance", lambda s: (s - target).abs().mean(1)),
        ("slice.labels", entropy),
        ("slice.kd", lambda s: kl(s, asked, 4.0) + 0.1 * entropy(s)),
    ):
        with torch.no_grad():
            student = filled(Wrn16x1(1, 3), 400).train()
        loss = criterion(student(seen))
        ((loss * weights).sum() / 20).backward()
        OUT[f"{name}.loss"] = loss.detach()
        gradients = [p.grad for p in student.parameters()]
        OUT[f"{name}.gradient"] = torch.stack([torch.stack([g.norm(), (g * fill(600 + i, *g.shape)).sum()]) for i, g in enumerate(gradients)])
        statistics = [t for key, t in student.state_dict().items() if key.rsplit(".")[-1] in ("running_mean", "running_var")]
        OUT[f"{name}.statistics"] = flat(statistics)


optimisers()
synthesis()
other_methods()
student_slices()
path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "training.safetensors")
save_file({name: t.contiguous() for name, t in OUT.items()}, path, metadata={"torch": torch.__version__})
