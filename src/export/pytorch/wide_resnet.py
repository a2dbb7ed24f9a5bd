class Block(nn.Module):
    """Batch-norm and ReLU before each of two convolutions."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x):
        a = torch.relu(self.bn1(x))
        h = self.conv2(torch.relu(self.bn2(self.conv1(a))))
        return h + (x if self.convShortcut is None else self.convShortcut(a))


class Group(nn.Module):
    """Blocks of one width, the first of which may halve the map."""

    def __init__(self, count, inputs, outputs, stride):
        super().__init__()
        first = Block(inputs, outputs, stride)
        self.layer = nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(count - 1)))

    def forward(self, x):
        return self.layer(x)


class Network(nn.Module):
    """Wide residual network WRN-depth-widen (Zagoruyko and Komodakis 2016)."""

    def __init__(self, depth, widen, channels, classes):
        super().__init__()
        count, width = (depth - 4) // 6, 16 * widen
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = Group(count, 16, width, 1)
        self.block2 = Group(count, width, 2 * width, 2)
        self.block3 = Group(count, 2 * width, 4 * width, 2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, images):
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(torch.relu(self.bn1(x)).mean((2, 3)))
