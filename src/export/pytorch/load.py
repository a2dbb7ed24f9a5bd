def normalise(images):
    """Images [b, c, h, w] with values in 0..1 as the network takes them."""
    mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def read(path):
    """The tensors of a safetensors file."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    kinds = {"F32": torch.float32, "I64": torch.int64}

    def tensor(entry):
        begin, end = (start + offset for offset in entry["data_offsets"])
        return torch.frombuffer(bytearray(data[begin:end]), dtype=kinds[entry["dtype"]]).reshape(entry["shape"])

    return {key: tensor(entry) for key, entry in header.items() if key != "__metadata__"}


def load(weights=Path(__file__).with_suffix(".safetensors"), device="cpu"):
    """The network with its weights, in evaluation mode; `load().train()` trains on."""
    network = Network(**ARGUMENTS)
    network.load_state_dict(read(weights))
    return network.to(device).eval()
