"""The network for images."""

from __future__ import annotations

from torch import Tensor, nn


class ImageConvNet(nn.Module):
    """Three strided convolutions and a linear read-out, for colour images of 32 x 32 pixels in 10 classes.

    Input (batch, 3, 32, 32), output (batch, 10).
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, channels), (channels, 2 * channels), (2 * channels, 2 * channels)):
            layers += [nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.readout = nn.Linear(32 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.features(x).flatten(1))
