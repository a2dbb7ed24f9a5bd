"""An inversion step and a distillation step in plain PyTorch, for `ssdkd bench step --against PYTHON`, which puts `plain.py` before it.

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


def normalised(x):
    return (x - MEAN) / STD


def inversion(steps=SPEC["steps"]):
    """The inner loop on a copy of the generator; the terms of its last step."""
    generator = {k: v.detach().clone().requires_grad_(v.requires_grad) for k, v in GENERATOR.items()}
    z = DATA["latent"].clone().requires_grad_(True)
    parameters = trained(generator)
    optimiser = torch.optim.Adam([{"params": parameters}, {"params": [z], "lr": SPEC["lr_latent"]}], lr=SPEC["lr_generator"], betas=(0.5, 0.999))
    summed, best, kept = [torch.zeros_like(v) for v in parameters], None, None
    for step in range(steps):
        images = generate(generator, z, SPEC["size"])
        seen = normalised(views_of(images, DATA["inversion_views"][step]))
        taps = Statistics()
        t_out = TEACHER_NET(TEACHER, seen, False, taps)
        with torch.no_grad():
            phi = (1 - F.softmax(t_out, 1).max(1).values) ** 2
        loss, terms = inversion_loss(t_out, STUDENT_NET(STUDENT, seen, False), DATA["labels"], taps, SPEC, phi)
        if best is None or loss.item() < best:
            best, kept = loss.item(), images.detach()
        optimiser.zero_grad()
        loss.backward()
        for total, v in zip(summed, parameters):
            total += v.grad
        optimiser.step()
    return [term.item() for term in terms] + [phi.mean().item()]


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
    version = torch.__version__ if torch else None
    return {"ready": [] if MISSING else names, "missing": dict.fromkeys(names, MISSING) if MISSING else {}, "version": version}


UNKNOWN = [SPEC[role] for role in ("teacher", "student") if not network_of(SPEC[role])]
MISSING = f"no {UNKNOWN[0]} is written in plain PyTorch here" if UNKNOWN else "" if torch else "this Python has no torch"
if not MISSING:
    DATA = read(FILE)
    MEAN, STD = (torch.tensor(SPEC[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    TEACHER, STUDENT, GENERATOR = ({k[len(n) + 1 :]: v for k, v in DATA.items() if k.startswith(n + ".")} for n in ("teacher", "student", "generator"))
    for tensors in (TEACHER, STUDENT, GENERATOR):
        for parameter in trained(tensors):
            parameter.requires_grad_()
    TEACHER_NET, STUDENT_NET = network_of(SPEC["teacher"]), network_of(SPEC["student"])
    SGD = torch.optim.SGD(trained(STUDENT), lr=SPEC["lr"], momentum=0.9, weight_decay=1e-4)

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
