"""Other prioritised samplers, one thread, indices only, for `ssdkd bench replay --against PYTHON`.

Reads a request a line and answers in a line: `hello` -> which samplers are here, `size N` -> ok, a sampler's name -> cycles
per second of CPU time over one turn. A cycle is sample(B) with importance weights and the update of the same B priorities.
"""
import json
import os
import sys
import time

BATCH, ALPHA, BETA, EPSILON, TURN_SECONDS = int(sys.argv[1]), *map(float, sys.argv[2:6])
answers = os.fdopen(os.dup(1), "w")
# Libraries print what they like: not among the answers.
os.dup2(2, 1)


def torchrl_sampler(n):
    import torch
    from torchrl.data.replay_buffers import LazyTensorStorage, PrioritizedSampler

    torch.set_num_threads(1)
    everything = torch.arange(n)
    storage = LazyTensorStorage(n)
    storage.set(everything, torch.zeros(n, dtype=torch.uint8))
    sampler = PrioritizedSampler(n, alpha=ALPHA, beta=BETA, eps=EPSILON)
    sampler.extend(everything)
    sampler.update_priority(everything, torch.rand(n))
    priorities = torch.rand(BATCH)

    def cycle():
        indices, _ = sampler.sample(storage, BATCH)
        sampler.update_priority(indices, priorities)

    return cycle


def cpprb(n):
    import numpy
    from cpprb import PrioritizedReplayBuffer

    random = numpy.random.default_rng(1)
    # It holds something: a byte a sample.
    buffer = PrioritizedReplayBuffer(n, {"byte": {"dtype": numpy.uint8}}, alpha=ALPHA, eps=EPSILON)
    buffer.add(byte=numpy.zeros(n, dtype=numpy.uint8), priorities=random.random(n))
    priorities = random.random(BATCH)

    def cycle():
        drawn = buffer.sample(BATCH, BETA)
        buffer.update_priorities(drawn["indexes"], priorities)

    return cycle


def turn(cycle):
    began, cycles, seconds = time.thread_time(), 0, 0.0
    while seconds < TURN_SECONDS:
        for _ in range(20):
            cycle()
        cycles += 20
        seconds = time.thread_time() - began
    return cycles / seconds


def hello():
    missing = {}
    for build in (torchrl_sampler, cpprb):
        try:
            build(1000)()
            ready[build.__name__] = build
        except Exception as error:
            missing[build.__name__] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return json.dumps({"ready": list(ready), "missing": missing})


ready, cycles = {}, {}
for line in sys.stdin:
    request = line.split()
    if request[0] == "hello":
        answer = hello()
    elif request[0] == "size":
        cycles = {name: build(int(request[1])) for name, build in ready.items()}
        for cycle in cycles.values():
            turn(cycle)
        answer = "ok"
    else:
        answer = turn(cycles[request[0]])
    print(answer, file=answers, flush=True)
