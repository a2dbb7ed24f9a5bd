def conv(inputs, outputs, kernel, **rest):
    return nn.Conv2d(inputs, outputs, kernel, bias=False, **rest)


def branch(inputs, kernel, **rest):
    return [conv(inputs, 256, kernel, **rest), nn.BatchNorm2d(256), nn.ReLU()]


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: five looks at a map, side by side."""

    def __init__(self, inputs):
        super().__init__()
        looks = [nn.Sequential(*branch(inputs, 1))]
        looks += [nn.Sequential(*branch(inputs, 3, padding=rate, dilation=rate)) for rate in (12, 24, 36)]
        looks += [nn.Sequential(nn.AdaptiveAvgPool2d(1), *branch(inputs, 1))]
        self.convs = nn.ModuleList(looks)
        self.project = nn.Sequential(*branch(5 * 256, 1), nn.Dropout(0.1))

    def forward(self, x):
        *maps, whole = [look(x) for look in self.convs]
        return self.project(torch.cat([*maps, whole.expand_as(maps[0])], 1))


class Head(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.classifier = nn.Sequential(Pyramid(inputs), *branch(256, 3, padding=1), nn.Conv2d(256, classes, 1))

    def forward(self, x):
        return self.classifier(x)


class Network(nn.Module):
    """DeepLabV3 with output stride 8 (Chen et al. 2017)."""

    def __init__(self, channels, classes):
        super().__init__()
        self.backbone = Backbone(channels)
        self.classifier = Head(Backbone.OUTPUT, classes)

    def forward(self, images):
        x = self.classifier(self.backbone(images))
        return nn.functional.interpolate(x, size=images.shape[2:], mode="bilinear", align_corners=False)
