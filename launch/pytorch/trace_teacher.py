#!/usr/bin/env python3
"""Write any PyTorch classifier as a teacher for ssdkd: a TorchScript program that also says what goes into its batch-norms.

    python launch/pytorch/trace_teacher.py --module torchvision.models:resnet18 --kwargs '{"num_classes": 10}' --weights net.pth \\
        --input 3 32 32 --mean 0.4914 0.4822 0.4465 --std 0.2470 0.2435 0.2616 --out teacher.pt

or, where the module is at hand:

    from trace_teacher import save_teacher
    save_teacher(module, "teacher.pt", input_shape=(3, 32, 32), mean=[...], std=[...])

`mean` and `std` are the data set's in ssdkd: images arrive normalised by them. A module that was trained with other constants gets its own
(`own_mean`, `own_std`); the program then goes from the ones to the others. The module itself stays as it is: a copy is traced.
docs/teachers.md has the rest.
"""

import argparse
import contextlib
import copy
import importlib
import json
import math
import os
import platform
import sys

import torch
from torch import nn

MANIFEST = "ssdkd.json"
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


class Teacher(nn.Module):
    """images -> logits, features, and of every batch-norm: mean and biased variance of its input, running mean, running variance."""

    def __init__(self, module, features, scale, shift):
        super().__init__()
        self.module = module
        self.features = features
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, images):
        seen, features = [], []

        def batch_norm(layer, inputs):
            x = inputs[0]
            variance, mean = torch.var_mean(x, [0, *range(2, x.dim())], unbiased=False)
            seen.extend([mean, variance, layer.running_mean, layer.running_var])

        hooks = [layer.register_forward_pre_hook(batch_norm) for _, layer in batch_norms(self.module)]
        if self.features:
            layer = self.module.get_submodule(self.features)
            hooks.append(layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].flatten(1))))
        try:
            logits = self.module(images * self.scale + self.shift)
        finally:
            for hook in hooks:
                hook.remove()
        return (logits, features[-1] if features else logits.new_zeros(0), *seen)


def batch_norms(module):
    """Batch-norms that keep running statistics, with their names."""
    kept = lambda layer: isinstance(layer, BATCH_NORMS) and layer.running_mean is not None
    return [(name, layer) for name, layer in module.named_modules() if kept(layer)]


def refuse(problem):
    raise SystemExit(f"trace_teacher: error: {problem}")


@contextlib.contextmanager
def differentiable_attention():
    """Without gradients attention takes a fast path, which has none: a trace would hold it."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def per_channel(name, values, channels):
    """As many finite floats as there are channels, from a list, an array or a tensor."""
    values = [float(value) for value in values]
    if len(values) != channels or not all(math.isfinite(value) for value in values):
        refuse(f"{name} {values}: one finite value for each of {channels} channels is needed")
    if "std" in name and min(values) <= 0:
        refuse(f"{name} {values}: values above 0 are needed")
    return values


def calls(module, images, of):
    """Names of those layers in the order in which a pass calls them."""
    order = []
    hooks = [layer.register_forward_pre_hook(lambda *_, name=name: order.append(name)) for name, layer in of]
    module(images)
    for hook in hooks:
        hook.remove()
    return order


def save_teacher(module, path, input_shape, mean, std, own_mean=None, own_std=None, features="auto", resize=None):
    """Traces a copy of `module` in evaluation mode and writes it with its manifest.

    `features`: name of the layer whose input the features are; "auto" for the last linear layer; None for none. `resize`: pixels to which
    pictures' shorter side is brought before the middle is cut out; None for the images' own size.
    """
    channels, height, width = (int(side) for side in input_shape)
    if height != width:
        refuse(f"images of {height}x{width} pixels: ssdkd takes squares")
    mean, std = per_channel("mean", mean, channels), per_channel("std", std, channels)
    own_mean = mean if own_mean is None else per_channel("own mean", own_mean, channels)
    own_std = std if own_std is None else per_channel("own std", own_std, channels)
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            refuse(f"`{name}` of the module holds NaN or infinite values")
    parameter = next(module.parameters(), torch.zeros(()))
    kind = {"dtype": parameter.dtype, "device": parameter.device}
    channel = lambda values: torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)
    scale = channel(std) / channel(own_std)
    shift = (channel(mean) - channel(own_mean)) / channel(own_std)
    images, other = torch.randn(4, channels, height, width, **kind), torch.randn(3, channels, height, width, **kind)

    with differentiable_attention(), torch.no_grad():
        try:
            logits, again = module(images), module(images)
        except Exception as error:
            refuse(f"the module fails on images {list(images.shape)}: {error}")
        if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
            found = f"{type(logits).__name__} {list(getattr(logits, 'shape', []))}"
            refuse(f"the module returns {found}; logits of shape [batch, classes] are needed: wrap it in one that returns them")
        if not logits.isfinite().all():
            refuse("the module's logits are NaN or infinite")
        if not torch.equal(logits, again):
            refuse("the module gives other logits the second time: it draws random numbers, such as torch.nn.functional.dropout does without training=self.training")
        linear = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
        if features == "auto":
            order = calls(module, images, linear)
            features = order[-1] if order else None
        elif features is not None and features not in dict(module.named_modules()):
            refuse(f"--features {features}: the module has no such layer")
        layers = dict(batch_norms(module))
        order = calls(module, images, layers.items())
        if not order:
            print("no batch-norm with running statistics: only the methods dafl, zskt and dfad take this teacher", file=sys.stderr)

        teacher = Teacher(module, features, scale.to(**kind), shift.to(**kind)).eval()
        traced = torch.jit.trace(teacher, images, check_trace=False)
        # Other images, another batch: what the trace took for a constant shows.
        expected = teacher(other)
        try:
            got = traced(other)
        except Exception:
            refuse("the trace does not take another number of images: the module names a batch size")
        close = lambda a, b: a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)
        if not all(close(a, b) for a, b in zip(got, expected)):
            refuse("the trace gives other values than the module on another batch: does the module branch on its input, or name a batch size?")
    manifest = {
        "format": 1,
        "classes": logits.shape[1],
        "input": [channels, height, width],
        "mean": mean,
        "std": std,
        "features": expected[1].shape[-1],
        "batch_norms": [{"name": name, "channels": layers[name].num_features} for name in order],
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    if resize is not None:
        manifest["resize"] = int(resize)
    torch.jit.save(traced, path, _extra_files={MANIFEST: json.dumps(manifest, indent=1)})
    return manifest


def plain_state_dict(path):
    """The state_dict of a file, also where it lies under a name, without the prefix of DataParallel."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        refuse(f"--weights {path}: {error}")
    for name in ("state_dict", "model"):
        state = state.get(name, state)
    prefix = "module."
    return {key.removeprefix(prefix): value for key, value in state.items()} if all(key.startswith(prefix) for key in state) else state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", required=True, metavar="PACKAGE:FUNCTION", help="what makes the module")
    parser.add_argument("--kwargs", type=json.loads, default={}, metavar="JSON", help="its arguments")
    parser.add_argument("--weights", metavar="FILE", help="a state_dict, plain or under `state_dict` or `model`; left out, what the function loads itself")
    parser.add_argument("--input", type=int, nargs=3, required=True, metavar=("C", "H", "W"))
    for name in ("--mean", "--std", "--own-mean", "--own-std"):
        parser.add_argument(name, type=float, nargs="+", required="own" not in name)
    parser.add_argument("--features", default="auto", metavar="LAYER", help="layer whose input the features are; `none` for none")
    parser.add_argument("--resize", type=int, metavar="PIXELS", help="what pictures' shorter side is brought to before the middle is cut out")
    parser.add_argument("--out", required=True, metavar="FILE.pt")
    args = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    if not os.path.isdir(os.path.dirname(args.out) or "."):
        refuse(f"--out {args.out}: there is no such folder")
    package, colon, function = args.module.partition(":")
    try:
        module = getattr(importlib.import_module(package), function)(**args.kwargs)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        refuse(f"--module {args.module}: {error}" if colon else f"--module {args.module}: PACKAGE:FUNCTION is needed")
    if args.weights:
        try:
            module.load_state_dict(plain_state_dict(args.weights))
        except RuntimeError as error:
            refuse(f"--weights {args.weights}: " + "\n".join(str(error).splitlines()[:4]))
    features = None if args.features == "none" else args.features
    manifest = save_teacher(module, args.out, args.input, args.mean, args.std, args.own_mean, args.own_std, features, args.resize)
    print(f"{args.out}: {manifest['classes']} classes, {len(manifest['batch_norms'])} batch-norms, features of {manifest['features']} values")


if __name__ == "__main__":
    main()
