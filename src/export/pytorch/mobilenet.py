def layer(inputs, outputs, kernel, **rest):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, bias=False, **rest), nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """The map is padded before it is expanded, so that the ring around it is not zero where the depthwise convolution meets it."""

    def __init__(self, inputs, expansion, outputs, stride, dilation):
        super().__init__()
        hidden = expansion * inputs
        layers = [layer(inputs, hidden, 1)] if expansion != 1 else []
        layers += [layer(hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden)]
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.ring, self.residual = dilation, stride == 1 and inputs == outputs

    def forward(self, x):
        h = self.conv(nn.functional.pad(x, [self.ring] * 4))
        return h + x if self.residual else h


class Backbone(nn.Module):
    """MobileNetV2 with output stride 8 (Sandler et al. 2018)."""

    OUTPUT = 320
    # Expansion, channels, stride, dilation.
    BLOCKS = (
        [(1, 16, 1, 1), (6, 24, 2, 1), (6, 24, 1, 1), (6, 32, 2, 1), (6, 32, 1, 1), (6, 32, 1, 1), (6, 64, 1, 1)]
        + [(6, 64, 1, 2)] * 3
        + [(6, 96, 1, 2)] * 3
        + [(6, 160, 1, 2), (6, 160, 1, 4), (6, 160, 1, 4), (6, 320, 1, 4)]
    )

    def __init__(self, channels):
        super().__init__()
        width, features = 32, {"0": layer(channels, 32, 3, stride=2)}
        for index, (expansion, outputs, stride, dilation) in enumerate(self.BLOCKS):
            features[str(index + 1)] = InvertedResidual(width, expansion, outputs, stride, dilation)
            width = outputs
        self.low_level_features, self.high_level_features = nn.Sequential(), nn.Sequential()
        for name, feature in features.items():
            (self.low_level_features if int(name) < 4 else self.high_level_features).add_module(name, feature)

    def forward(self, images):
        return self.high_level_features(self.low_level_features(images))
