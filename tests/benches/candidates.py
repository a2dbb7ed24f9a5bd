"""What each way to a faster step is worth alone, in plain PyTorch: one change at a time to the demo's inversion and distillation step, in turns.

    OMP_NUM_THREADS=2 python3 tests/benches/candidates.py

Needs PyTorch. The pair, the batch of 128 and all settings are the demo's (configs/fashion_mnist/demo.toml); the plain form is that of
`plain.py`. The allocator's line starts this program again, since its settings are read when a process begins.
"""
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time

from end_to_end import *

BATCH, TURNS = 128, 7
# Freed memory is kept instead of given back and faulted in again.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 40), "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}


class OnePass(Statistics):
    def see(self, x, mean, var):
        now_var, now_mean = torch.var_mean(x, [0, 2, 3], unbiased=False)
        self.loss = self.loss + (var - now_var).norm(2) + (mean - now_mean).norm(2)


class Steps:
    """An inversion step (generator, views, teacher with statistics, student, loss, backward, Adam) and a distillation step."""

    def __init__(self, frozen=False, channels_last=False, one_pass=False, fused=False, reads_loss=True, bf16=False, stored=False):
        torch.manual_seed(0)
        self.taps, self.reads_loss, self.stored = OnePass if one_pass else Statistics, reads_loss, stored
        self.channels_last = channels_last
        self.casts = (lambda: torch.autocast("cpu", torch.bfloat16)) if bf16 else contextlib.nullcontext
        self.teacher, self.student, self.generator = read(DEMO.parent / "teacher.safetensors"), new_student(), new_generator(256, 32)
        for tensors in (self.teacher, self.student, self.generator):
            for name, value in tensors.items():
                if channels_last and value.dim() == 4:
                    tensors[name] = value.contiguous(memory_format=torch.channels_last)
        for tensors in (self.generator,) if frozen else (self.teacher, self.student, self.generator):
            for parameter in trained(tensors):
                parameter.requires_grad_()
        self.learner = {k: v.detach().clone() for k, v in self.student.items()}
        for parameter in trained(self.learner):
            parameter.requires_grad_()
        self.z = torch.randn(BATCH, 256).requires_grad_()
        groups = [{"params": trained(self.generator)}, {"params": [self.z], "lr": 0.015}]
        self.adam = torch.optim.Adam(groups, lr=4e-3, betas=(0.5, 0.999), fused=fused)
        self.sgd = torch.optim.SGD(trained(self.learner), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=fused)
        self.labels, self.views = torch.randint(0, CLASSES, (BATCH,)), drawn_views(BATCH, 2)
        self.images, self.logits = torch.rand(BATCH, 1, 32, 32), torch.randn(BATCH, CLASSES)
        self.k = {"statistics_weight": 10.0, "task_weight": 0.8, "adversarial_weight": 1.1}

    def laid_out(self, x):
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def inversion(self):
        taps = self.taps()
        with self.casts():
            images = generate(self.generator, self.z, [32, 32])
            seen = self.laid_out(NORMALISED(views_of(images, self.views)))
            t_out, s_out = wide_resnet(self.teacher, seen, False, taps), wide_resnet(self.student, seen, False)
        loss, _ = inversion_loss(t_out.float(), s_out.float(), self.labels, taps, self.k)
        if self.reads_loss:
            loss.item()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def distillation(self):
        seen = self.laid_out(NORMALISED(views_of(self.images, self.views)))
        with self.casts():
            if self.stored:
                t_out = self.logits
            else:
                with torch.no_grad():
                    t_out = wide_resnet(self.teacher, seen, False)
            s_out = wide_resnet(self.learner, seen, True)
        loss = kl(s_out.float(), t_out.float(), 10.0).mean()
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()

    def copy(self):
        """Once an inversion: the generator's own copy of its tensors."""
        {k: v.detach().clone() for k, v in self.generator.items()}


def seconds(step):
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


ALONE = {
    "plain": {},
    "teacher and student frozen": {"frozen": True},
    "channels-last": {"channels_last": True},
    "mean and variance in one call": {"one_pass": True},
    "fused optimiser": {"fused": True},
    "loss not read every step": {"reads_loss": False},
    "stored teacher logits": {"stored": True},
    "bf16 autocast": {"bf16": True},
}


def measured(names):
    of = {name: Steps(**ALONE[name]) for name in names}
    turns = {name: ([], [], []) for name in names}
    for _ in range(TURNS + 1):
        for name, steps in of.items():
            for kept, step in zip(turns[name], (steps.inversion, steps.distillation, steps.copy)):
                kept.append(1e3 * seconds(step))
    # The first turn warms up.
    return {name: [statistics.median(kept[1:]) for kept in lists] for name, lists in turns.items()}


if __name__ == "__main__":
    if sys.argv[1:] == ["--plain"]:
        print(json.dumps(measured(["plain"])))
        sys.exit()
    found = measured(list(ALONE))
    kept = subprocess.run([sys.executable, __file__, "--plain"], env={**os.environ, **KEEP}, capture_output=True, text=True, check=True)
    found["freed memory kept"] = json.loads(kept.stdout)["plain"]
    base = found["plain"]
    print("| one change at a time | inversion step, ms | | distillation step, ms | |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (inversion, distillation, _) in found.items():
        print(f"| {name} | {inversion:.0f} | {base[0] / inversion:.2f} × | {distillation:.0f} | {base[1] / distillation:.2f} × |")
    print(f"\nA copy of the generator, once an inversion: {base[2]:.1f} ms.")
