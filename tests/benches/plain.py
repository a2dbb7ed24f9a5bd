"""The method's parts in plain PyTorch, as research code writes them: full f32, default memory layout, statistics by hooks.

Networks are dictionaries of tensors by state_dict key. Used by `end_to_end.py`, and put before `step_peers.py` by `ssdkd bench step`.
"""
import json

try:
    import torch
    import torch.nn.functional as F
except ImportError:  # Its users say so.
    torch = None


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


class Statistics:
    """What hooks on the teacher's batch-norms collect in one pass: the loss, and each input's mean and variance.

    With `averages` of former calls, momentum as in zju-vipa/Fast-Datafree (`--bn_mmt`).
    """

    def __init__(self, averages=None, momentum=0.0):
        self.averages, self.momentum, self.loss, self.seen = averages, momentum, 0.0, []

    def see(self, x, mean, var):
        now = x.mean([0, 2, 3]), x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        if self.averages:
            m, before = self.momentum, self.averages[len(self.seen)]
            mixed = [(1 - m) * new + m * old for new, old in zip(now, before)]
        else:
            mixed = now
        self.loss = self.loss + (var - mixed[1]).norm(2) + (mean - mixed[0]).norm(2)
        self.seen.append([value.detach() for value in now])

    def averaged(self):
        """What the next call mixes in."""
        m = self.momentum
        if not self.averages:
            return self.seen
        return [[m * old + (1 - m) * new for new, old in zip(*pair)] for pair in zip(self.seen, self.averages)]


def batch_norm(p, name, x, train, taps=None):
    mean, var = p[name + ".running_mean"], p[name + ".running_var"]
    if taps is not None:
        taps.see(x, mean, var)
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


def generate(p, z, size):
    x = F.linear(z, p["l1.0.weight"], p["l1.0.bias"]).view(z.shape[0], -1, size[0] // 4, size[1] // 4)
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


def kl(student, teacher, T):
    q, p = F.log_softmax(student / T, 1), F.softmax(teacher / T, 1)
    return F.kl_div(q, p, reduction="none").sum(1) * T * T


def network_of(name):
    """The forward pass of a model by ssdkd's name for it; none for networks that are not written here."""
    return {"w": wide_resnet, "r": resnet, "v": vgg}.get(name[0])


def trained(tensors):
    """The parameters among a network's tensors."""
    return [v for k, v in tensors.items() if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))]


def inversion_loss(t_out, s_out, labels, taps, k, phi=None):
    """Weighted sum, and the terms: statistics, task, adversarial (0 without a student)."""
    task = F.cross_entropy(t_out, labels, reduction="none")
    task = (task if phi is None else phi * task).mean()
    adversarial = torch.zeros(())
    if s_out is not None:
        mask = (s_out.argmax(1) == t_out.argmax(1)).float()
        adversarial = (kl(s_out, t_out, 1.0) * mask).mean()
    loss = k["statistics_weight"] * taps.loss + k["task_weight"] * task - k["adversarial_weight"] * adversarial
    return loss, [taps.loss, task, adversarial]
