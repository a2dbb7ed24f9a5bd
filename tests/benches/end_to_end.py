"""Time to an accuracy on the demo's task: SSD-KD and FastMeta by ssdkd on two ranks, FastMeta in plain PyTorch on two threads, in turn.

    python3 tests/benches/end_to_end.py --ssdkd target/release/ssdkd --out runs/end_to_end

Needs PyTorch, and matplotlib for the plot. All three have the demo's settings (configs/fashion_mnist/demo.toml) but for the number of rounds; seconds are those of
training, without evaluation, reports and pictures. The PyTorch version is the published algorithm (zju-vipa/Fast-Datafree: `fast_meta.py`,
`datafree_kd.py`) with its pool in memory, where the published code writes and reads a PNG file per image; like ours, it draws from the pool with
replacement, its adversarial term joins with the first student step, and its cosine ends with the run. It makes one batch a round where
ours makes one for each logical rank, and asks the teacher where ours reads stored views.
"""
import argparse
import csv
import gzip
import math
import pathlib
import subprocess
import sys
import time
import tomllib

from plain import *

if torch is None:
    sys.exit("this Python has no torch")
ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs/fashion_mnist/demo.toml"
MEAN, STD, CLASSES = 0.2860, 0.3530, 10
NORMALISED = lambda x: (x - MEAN) / STD


def test_images():
    read_gz = lambda name: gzip.decompress((DEMO.parent / name).read_bytes())
    images = torch.frombuffer(bytearray(read_gz("t10k-images-idx3-ubyte.gz")[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
    labels = torch.frombuffer(bytearray(read_gz("t10k-labels-idx1-ubyte.gz")[8:]), dtype=torch.uint8).long()
    return F.pad(images, (2, 2, 2, 2)), labels


def uniform(shape, fan_in):
    return torch.empty(shape).uniform_(-1, 1) / math.sqrt(fan_in)


def norm(p, name, channels):
    p.update({f"{name}.weight": torch.ones(channels), f"{name}.bias": torch.zeros(channels)})
    p.update({f"{name}.running_mean": torch.zeros(channels), f"{name}.running_var": torch.ones(channels)})


def new_generator(latent, filters):
    wide, p = 2 * filters, {}
    p["l1.0.weight"], p["l1.0.bias"] = uniform((wide * 64, latent), latent), uniform((wide * 64,), latent)
    norm(p, "conv_blocks.0", wide)
    for index, (into, out) in {2: (wide, wide), 6: (wide, filters), 9: (filters, 1)}.items():
        p[f"conv_blocks.{index}.weight"] = uniform((out, into, 3, 3), into * 9)
    norm(p, "conv_blocks.3", wide)
    norm(p, "conv_blocks.7", filters)
    p["conv_blocks.9.bias"] = uniform((1,), filters * 9)
    return p


def new_student():
    """WRN-16-1, as the published code starts it."""
    p, kaiming = {}, lambda out, into, k: torch.randn(out, into, k, k) * math.sqrt(2 / (k * k * out))
    p["conv1.weight"] = kaiming(16, 1, 3)
    into = 16
    for group, out in ((1, 16), (2, 32), (3, 64)):
        for index in range(2):
            name = f"block{group}.layer.{index}."
            norm(p, name + "bn1", into)
            norm(p, name + "bn2", out)
            p[name + "conv1.weight"], p[name + "conv2.weight"] = kaiming(out, into, 3), kaiming(out, out, 3)
            if into != out:
                p[name + "convShortcut.weight"] = kaiming(out, into, 1)
            into = out
    norm(p, "bn1", 64)
    p["fc.weight"], p["fc.bias"] = uniform((CLASSES, 64), 64), torch.zeros(CLASSES)
    return p


def drawn_views(count, reach):
    return torch.cat([torch.randint(-reach, reach + 1, (count, 2)), torch.randint(0, 2, (count, 1))], 1)


class PlainFastMeta:
    def __init__(self, demo, seed):
        torch.manual_seed(seed)
        self.demo, self.k = demo, {"statistics_weight": 10.0, "adversarial_weight": 1.1, **demo["inversion"]}
        self.batch = self.k["batch_size"] * demo["parallel"]["logical_ranks"]
        self.teacher = read(DEMO.parent / demo["teacher"]["weights"])
        self.student, self.generator = new_student(), new_generator(256, demo["generator"]["filters"])
        for tensors in (self.teacher, self.student, self.generator):
            for parameter in trained(tensors):
                parameter.requires_grad_()
        self.meta = torch.optim.Adam(trained(self.generator), lr=self.k["lr_generator"] * self.k["steps"], betas=(0.5, 0.999))
        self.sgd = torch.optim.SGD(trained(self.student), lr=demo["student"]["lr"], momentum=0.9, weight_decay=1e-4)
        self.averages, self.pool = None, []

    def synthesise(self, adversarial):
        k = self.k
        generator = {n: v.detach().clone().requires_grad_(v.requires_grad) for n, v in self.generator.items()}
        z = torch.randn(self.batch, 256).requires_grad_()
        labels, parameters = torch.randint(0, CLASSES, (self.batch,)), trained(generator)
        adam = torch.optim.Adam([{"params": parameters}, {"params": [z], "lr": k["lr_latent"]}], lr=k["lr_generator"], betas=(0.5, 0.999))
        self.meta.zero_grad()
        best, kept = math.inf, None
        for _ in range(k["steps"]):
            images = generate(generator, z, [32, 32])
            seen = NORMALISED(views_of(images, drawn_views(self.batch, k["view_shift"])))
            taps = Statistics(self.averages, 0.9)
            t_out = wide_resnet(self.teacher, seen, False, taps)
            s_out = wide_resnet(self.student, seen, False) if adversarial else None
            loss, _ = inversion_loss(t_out, s_out, labels, taps, k)
            if loss.item() < best:
                best, kept = loss.item(), images.detach()
            adam.zero_grad()
            loss.backward()
            for meta, inner in zip(trained(self.generator), parameters):
                meta.grad = inner.grad.clone() if meta.grad is None else meta.grad + inner.grad
            adam.step()
        self.averages = taps.averaged()
        self.meta.step()
        self.pool.append((kept.clamp(0, 1) * 255).byte())

    def distil(self, steps):
        k, pool = self.demo["distill"], torch.cat(self.pool)
        for _ in range(steps):
            images = pool[torch.randint(0, len(pool), (k["batch_size"],))].float() / 255
            seen = NORMALISED(views_of(images, drawn_views(len(images), k["view_shift"])))
            with torch.no_grad():
                t_out = wide_resnet(self.teacher, seen, False)
            loss = kl(wide_resnet(self.student, seen, True), t_out, k["temperature"]).mean()
            self.sgd.zero_grad()
            loss.backward()
            self.sgd.step()

    def run(self, every, data):
        train, seconds, curve = self.demo["train"], 0.0, []
        learning = train["rounds"] - train["warmup_rounds"]
        for n in range(train["rounds"]):
            began = time.perf_counter()
            done = max(0, n - train["warmup_rounds"])
            for group in self.sgd.param_groups:
                group["lr"] = 2e-4 + (self.demo["student"]["lr"] - 2e-4) * (1 + math.cos(math.pi * done / learning)) / 2
            self.synthesise(n >= train["warmup_rounds"])
            if n >= train["warmup_rounds"]:
                self.distil(self.demo["distill"]["steps_per_round"])
            seconds += time.perf_counter() - began
            if n >= train["warmup_rounds"] and ((n + 1) % every == 0 or n + 1 == train["rounds"]):
                curve.append((seconds, self.accuracy(*data)))
                print(f"  round {n + 1}: {seconds:.0f} s, {100 * curve[-1][1]:.2f} %", flush=True)
        return curve

    def accuracy(self, images, labels):
        with torch.no_grad():
            right = sum((wide_resnet(self.student, NORMALISED(x.float() / 255), False).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500)))
        return right.item() / len(labels)


def ours(ssdkd, folder, every, settings):
    command = [ROOT / "launch/mpirun.sh", "2", ssdkd, "train", "--fresh", "--config", DEMO, "--run-dir", folder]
    for key in [f"train.eval_every_rounds={every}", "train.picture_every_rounds=0", *settings]:
        command += ["--set", key]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = lambda name: {row["round"]: row for row in csv.DictReader(open(folder / name))}
    times = rows("timings.csv")
    clock = lambda row: float(row["seconds"]) - float(row["evaluation"])
    return [(clock(times[n]), float(row["student_top1"])) for n, row in rows("metrics.csv").items() if row["student_top1"]]


def time_to(curve, target):
    """Seconds of the first evaluation from which on the accuracy stays at `target` or above; none if it ends below."""
    reached = None
    for seconds, top1 in curve:
        reached = (seconds if reached is None else reached) if top1 >= target else None
    return reached


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ssdkd", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--warmup-rounds", type=int, default=12)
    parser.add_argument("--every", type=int, default=4, help="rounds between evaluations")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.8, 0.85])
    parser.add_argument("--seed", type=int, default=0)
    of = parser.parse_args()
    of.out.mkdir(parents=True, exist_ok=True)
    demo = tomllib.loads(DEMO.read_text())
    demo["train"].update(rounds=of.rounds, warmup_rounds=of.warmup_rounds)
    common = [f"seed={of.seed}", f"train.rounds={of.rounds}", f"train.warmup_rounds={of.warmup_rounds}", "distill.teacher_views=8"]
    torch.set_num_threads(2)
    curves = {}
    for name, run in {
        "ssdkd, SSD-KD": lambda: ours(of.ssdkd, of.out / "ssd_kd", of.every, common),
        "ssdkd, FastMeta": lambda: ours(of.ssdkd, of.out / "fast_meta", of.every, [*common, "method=fast_meta"]),
        "PyTorch, FastMeta": lambda: PlainFastMeta(demo, of.seed).run(of.every, test_images()),
    }.items():
        print(name, flush=True)
        curves[name] = run()
        with open(of.out / "curves.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["run", "seconds", "top1"])
            rows.writerows([n, round(s, 2), top1] for n, curve in curves.items() for s, top1 in curve)
    heads = [f"seconds to {100 * target:g} %" for target in of.targets]
    print("| | " + " | ".join(heads) + " | end: seconds | top-1, % |\n| --- |" + " ---: |" * (len(heads) + 2))
    for name, curve in curves.items():
        cells = ["–" if (t := time_to(curve, target)) is None else f"{t:.0f}" for target in of.targets]
        print(f"| {name} | " + " | ".join(cells) + f" | {curve[-1][0]:.0f} | {100 * curve[-1][1]:.2f} |")
    try:
        from matplotlib import pyplot
    except ImportError:
        sys.exit("no plot: this Python has no matplotlib")
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(*zip(*((s, 100 * top1) for s, top1 in curve)), marker=".", label=name)
    axes.set(xlabel="seconds of training", ylabel="top-1 on the test images, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(of.out / "end_to_end.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
