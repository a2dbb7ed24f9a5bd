#!/usr/bin/env python3
"""Write any PyTorch classifier as a teacher for ssdkd: a TorchScript program that also says what goes into its batch-norms.

    python launch/pytorch/trace_teacher.py --module torchvision.models:resnet18 --kwargs '{"num_classes": 10}' --weights net.pth \\
        --input 3 32 32 --mean 0.4914 0.4822 0.4465 --std 0.2470 0.2435 0.2616 --out teacher.pt

or, where the module is at hand:

    from trace_teacher import save_teacher
    save_teacher(module, "teacher.pt", input_shape=(3, 32, 32), mean=[...], std=[...])

`mean` and `std` are the data set's in ssdkd: images arrive normalised by them. A module that was trained with other constants gets its own
(`own_mean`, `own_std`); the program then goes from the ones to the others. docs/teachers.md has the rest.
"""

import argparse
import importlib
import json
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


def calls(module, images, of):
    """Names of those layers in the order in which a pass calls them."""
    order = []
    hooks = [layer.register_forward_pre_hook(lambda *_, name=name: order.append(name)) for name, layer in of]
    with torch.no_grad():
        logits = module(images)
    for hook in hooks:
        hook.remove()
    return order, logits


def save_teacher(module, path, input_shape, mean, std, own_mean=None, own_std=None, features="auto"):
    """Traces `module` in evaluation mode and writes it with its manifest.

    `features`: name of the layer whose input the features are; "auto" for the last linear layer; None for none.
    """
    module = module.eval().requires_grad_(False)
    parameter = next(module.parameters(), torch.zeros(()))
    kind = {"dtype": parameter.dtype, "device": parameter.device}
    channel = lambda values: torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)
    mean, std = list(mean), list(std)
    own_mean, own_std = list(own_mean or mean), list(own_std or std)
    scale = channel(std) / channel(own_std)
    shift = (channel(mean) - channel(own_mean)) / channel(own_std)
    images = torch.randn(4, *input_shape, **kind)

    linear = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if features == "auto":
        order, _ = calls(module, images, linear)
        features = order[-1] if order else None
    layers = dict(batch_norms(module))
    order, logits = calls(module, images, layers.items())
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise SystemExit(f"the module returns {type(logits).__name__} {getattr(logits, 'shape', '')}; logits of shape [batch, classes] are needed")
    if not order:
        print("no batch-norm with running statistics: only the methods dafl, zskt and dfad take this teacher", file=sys.stderr)

    teacher = Teacher(module, features, scale.to(**kind), shift.to(**kind)).eval()
    with torch.no_grad():
        traced = torch.jit.trace(teacher, images, check_trace=False)
        # Other images, another batch: what the trace took for a constant shows.
        other = torch.randn(3, *input_shape, **kind)
        pairs = zip(traced(other), teacher(other))
        if any(a.shape != b.shape or not torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs):
            raise SystemExit("the trace gives other values than the module on another batch: does the module branch on its input, or name a batch size?")
        width = teacher(other)[1].shape[-1]
    manifest = {
        "format": 1,
        "classes": logits.shape[1],
        "input": list(input_shape),
        "mean": mean,
        "std": std,
        "features": width,
        "batch_norms": [{"name": name, "channels": layers[name].num_features} for name in order],
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    torch.jit.save(traced, path, _extra_files={MANIFEST: json.dumps(manifest, indent=1)})
    return manifest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", required=True, metavar="PACKAGE:FUNCTION", help="what makes the module")
    parser.add_argument("--kwargs", type=json.loads, default={}, metavar="JSON", help="its arguments")
    parser.add_argument("--weights", metavar="FILE", help="a state_dict, plain or under `state_dict` or `model`; left out, what the function loads itself")
    parser.add_argument("--input", type=int, nargs=3, required=True, metavar=("C", "H", "W"))
    for name in ("--mean", "--std", "--own-mean", "--own-std"):
        parser.add_argument(name, type=float, nargs="+", required="own" not in name)
    parser.add_argument("--features", default="auto", metavar="LAYER", help="layer whose input the features are; `none` for none")
    parser.add_argument("--out", required=True, metavar="FILE.pt")
    args = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    package, function = args.module.split(":")
    module = getattr(importlib.import_module(package), function)(**args.kwargs)
    if args.weights:
        state = torch.load(args.weights, map_location="cpu", weights_only=True)
        module.load_state_dict(state.get("state_dict", state.get("model", state)))
    features = None if args.features == "none" else args.features
    manifest = save_teacher(module, args.out, args.input, args.mean, args.std, args.own_mean, args.own_std, features)
    print(f"{args.out}: {manifest['classes']} classes, {len(manifest['batch_norms'])} batch-norms, features of {manifest['features']} values")


if __name__ == "__main__":
    main()
