"""An inversion step and a distillation step in plain PyTorch, for `ssdkd bench step --against PYTHON`.

The same mathematics as ours on the same numbers, written as research code writes it: full f32, default memory layout, the teacher's
weights ask for gradients, statistics by hooks, a teacher forward in every distillation step. Reads a request a line and answers in a
line: `hello` -> what is measured, `losses` -> the loss terms of both steps, a step's name -> seconds per step over one turn.

The numbers come in a safetensors file: f32 tensors `teacher.*`, `student.*`, `generator.*`, `latent`, `images`, `weights`, and i64
`labels`, `inversion_views` [step, image, 3] and `views` [image, 3] (rows down, columns to the right, flip).
"""
import json
import os
import sys
import time

FILE, SPEC = sys.argv[1], json.loads(sys.argv[2])
answers = os.fdopen(os.dup(1), "w")
# Libraries print what they like: not among the answers.
os.dup2(2, 1)


def read(path):
    kinds = {"F32": torch.float32, "I64": torch.int64}
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header, data = json.loads(file.read(size)), bytearray(file.read())
    header.pop("__metadata__", None)

    def shaped(t):
        kind, (begin, end) = kinds[t["dtype"]], t["data_offsets"]
        return torch.frombuffer(data, dtype=kind, count=(end - begin) // kind.itemsize, offset=begin).reshape(t["shape"]).clone()

    return {name: shaped(t) for name, t in header.items()}


def batch_norm(p, name, x, train, taps=None):
    mean, var = p[name + ".running_mean"], p[name + ".running_var"]
    if taps is not None:
        channels = x.shape[1]
        variance = x.permute(1, 0, 2, 3).contiguous().view(channels, -1).var(1, unbiased=False)
        taps.append((var - variance).norm(2) + (mean - x.mean([0, 2, 3])).norm(2))
    return F.batch_norm(x, mean, var, p[name + ".weight"], p[name + ".bias"], train, 0.1, 1e-5)


def conv(p, name, x, stride=1):
    weight = p[name + ".weight"]
    return F.conv2d(x, weight, p.get(name + ".bias"), stride, weight.shape[2] // 2)


def pooled(x):
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def wide_resnet(p, x, train, taps=None):
    x = conv(p, "conv1", x)
    for group in (1, 2, 3):
        index = 0
        while f"block{group}.layer.{index}.conv1.weight" in p:
            name, stride = f"block{group}.layer.{index}.", 2 if group > 1 and index == 0 else 1
            a = F.relu(batch_norm(p, name + "bn1", x, train, taps))
            h = conv(p, name + "conv1", a, stride)
            h = conv(p, name + "conv2", F.relu(batch_norm(p, name + "bn2", h, train, taps)))
            x = h + (conv(p, name + "convShortcut", a, stride) if name + "convShortcut.weight" in p else x)
            index += 1
    return F.linear(pooled(F.relu(batch_norm(p, "bn1", x, train, taps))), p["fc.weight"], p["fc.bias"])


def resnet(p, x, train, taps=None):
    x = F.relu(batch_norm(p, "bn1", conv(p, "conv1", x), train, taps))
    for stage in (1, 2, 3, 4):
        index = 0
        while f"layer{stage}.{index}.conv1.weight" in p:
            name, stride = f"layer{stage}.{index}.", 2 if stage > 1 and index == 0 else 1
            h = F.relu(batch_norm(p, name + "bn1", conv(p, name + "conv1", x, stride), train, taps))
            h = batch_norm(p, name + "bn2", conv(p, name + "conv2", h), train, taps)
            if name + "shortcut.0.weight" in p:
                x = batch_norm(p, name + "shortcut.1", conv(p, name + "shortcut.0", x, stride), train, taps)
            x = F.relu(h + x)
            index += 1
    return F.linear(pooled(x), p["linear.weight"], p["linear.bias"])


def vgg(p, x, train, taps=None):
    for block in range(5):
        index = 0
        while f"block{block}.{index}.weight" in p:
            x = F.relu(batch_norm(p, f"block{block}.{index + 1}", conv(p, f"block{block}.{index}", x), train, taps))
            index += 3
        if block < 3:
            x = F.max_pool2d(x, 2)
    return F.linear(pooled(x), p["classifier.weight"], p["classifier.bias"])


def generate(p, z):
    x = F.linear(z, p["l1.0.weight"], p["l1.0.bias"]).view(z.shape[0], -1, SPEC["size"][0] // 4, SPEC["size"][1] // 4)
    x = batch_norm(p, "conv_blocks.0", x, True)
    x = batch_norm(p, "conv_blocks.3", conv(p, "conv_blocks.2", F.interpolate(x, scale_factor=2)), True)
    x = F.leaky_relu(x, 0.2)
    x = batch_norm(p, "conv_blocks.7", conv(p, "conv_blocks.6", F.interpolate(x, scale_factor=2)), True)
    return torch.sigmoid(conv(p, "conv_blocks.9", F.leaky_relu(x, 0.2)))


def views_of(x, views):
    b, c, h, w = x.shape
    reach = int(views[:, :2].abs().max())
    rows = torch.arange(h)[None] + views[:, :1] + reach
    columns = torch.arange(w)[None].expand(b, -1)
    columns = torch.where(views[:, 2:] == 1, w - 1 - columns, columns) + views[:, 1:2] + reach
    padded = F.pad(x, (reach, reach, reach, reach))
    return padded[torch.arange(b)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def normalised(x):
    return (x - MEAN) / STD


def kl(student, teacher, T):
    q, p = F.log_softmax(student / T, 1), F.softmax(teacher / T, 1)
    return F.kl_div(q, p, reduction="none").sum(1) * T * T


def inversion(steps=SPEC["steps"]):
    """The inner loop on a copy of the generator; the terms of its last step."""
    generator = {k: v.detach().clone().requires_grad_(v.requires_grad) for k, v in GENERATOR.items()}
    z = DATA["latent"].clone().requires_grad_(True)
    trained = [v for v in generator.values() if v.requires_grad]
    optimiser = torch.optim.Adam([{"params": trained}, {"params": [z], "lr": SPEC["lr_latent"]}], lr=SPEC["lr_generator"], betas=(0.5, 0.999))
    summed, best, kept = [torch.zeros_like(v) for v in trained], None, None
    for step in range(steps):
        images = generate(generator, z)
        seen = normalised(views_of(images, DATA["inversion_views"][step]))
        taps = []
        t_out = TEACHER_NET(TEACHER, seen, False, taps)
        statistics = sum(taps)
        with torch.no_grad():
            phi = (1 - F.softmax(t_out, 1).max(1).values) ** 2
        task = (phi * F.cross_entropy(t_out, DATA["labels"], reduction="none")).mean()
        s_out = STUDENT_NET(STUDENT, seen, False)
        mask = (s_out.argmax(1) == t_out.argmax(1)).float()
        adversarial = (kl(s_out, t_out, 1.0) * mask).mean()
        loss = SPEC["statistics_weight"] * statistics + SPEC["task_weight"] * task - SPEC["adversarial_weight"] * adversarial
        if best is None or loss.item() < best:
            best, kept = loss.item(), images.detach()
        optimiser.zero_grad()
        loss.backward()
        for total, v in zip(summed, trained):
            total += v.grad
        optimiser.step()
    return [statistics.item(), task.item(), adversarial.item(), phi.mean().item()]


def distillation():
    seen = normalised(views_of(DATA["images"], DATA["views"]))
    with torch.no_grad():
        t_out = TEACHER_NET(TEACHER, seen, False)
    s_out = STUDENT_NET(STUDENT, seen, True)
    loss = (DATA["weights"] * kl(s_out, t_out, SPEC["temperature"])).sum() / len(seen)
    SGD.zero_grad()
    loss.backward()
    SGD.step()
    return loss.item()


def turn(step, per_call):
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) / per_call


def hello():
    names = ["inversion", "distillation"]
    return {"ready": names, "missing": {}} if torch else {"ready": [], "missing": dict.fromkeys(names, "this Python has no torch")}


try:
    import torch
    import torch.nn.functional as F

    DATA = read(FILE)
    MEAN, STD = (torch.tensor(SPEC[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    trained = lambda name: not name.endswith(("running_mean", "running_var"))
    part = lambda name: {k[len(name) + 1 :]: v.requires_grad_(trained(k)) for k, v in DATA.items() if k.startswith(name + ".")}
    TEACHER, STUDENT, GENERATOR = part("teacher"), part("student"), part("generator")
    network = lambda name: {"w": wide_resnet, "r": resnet, "v": vgg}[name[0]]
    TEACHER_NET, STUDENT_NET = network(SPEC["teacher"]), network(SPEC["student"])
    SGD = torch.optim.SGD([v for v in STUDENT.values() if v.requires_grad], lr=SPEC["lr"], momentum=0.9, weight_decay=1e-4)
except ImportError:
    torch = None

STEPS = {"inversion": (inversion, SPEC["steps"]), "distillation": (distillation, 1)}
for line in sys.stdin:
    request = line.strip()
    if request == "hello":
        answer = hello()
    elif request == "losses":
        answer = inversion(1) + [distillation()]
    else:
        answer = turn(*STEPS[request])
    print(json.dumps(answer), file=answers, flush=True)
