"""Two-layer networks with batch normalization in torch: the peers that gradients train.

They minimise the objective of the convex program: the mean cross-entropy plus alpha / 2 times the
squares of the weights and biases of batch normalization and of the output weights.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

BLOCK = 500  # images that are handled at once where a pass is over all of them


@dataclass(frozen=True)
class Architecture:
    """A dense network, or a convolutional one where `patch_size` is given, on images."""

    image_shape: tuple[int, int, int]
    patch_size: int | None = None
    stride: int = 1
    pooling: int = 1

    def network(self, units: int, n_classes: int) -> nn.Sequential:
        """Return a new network; the first layer has no bias, which normalization would cancel."""
        height, width, channels = self.image_shape
        if self.patch_size is None:
            first = nn.Linear(height * width * channels, units, bias=False)
            rest = nn.BatchNorm1d(units), nn.ReLU(), nn.Linear(units, n_classes)
            return nn.Sequential(first, *rest)
        counts = [(size - self.patch_size) // self.stride + 1 for size in (height, width)]
        stride = tuple(count // self.pooling for count in counts)
        kernel = tuple(c - (self.pooling - 1) * s for c, s in zip(counts, stride, strict=True))
        first = nn.Conv2d(channels, units, self.patch_size, stride=self.stride, bias=False)
        pool, output = nn.AvgPool2d(kernel, stride), nn.Linear(units * self.pooling**2, n_classes)
        return nn.Sequential(first, nn.BatchNorm2d(units), nn.ReLU(), pool, nn.Flatten(), output)

    def tensor(self, X: np.ndarray) -> Tensor:
        """Return images (n, height, width, channels) of bytes as the network takes them."""
        images = torch.as_tensor(np.ascontiguousarray(X)).float() / 255 - 0.5
        return images.flatten(1) if self.patch_size is None else images.permute(0, 3, 1, 2)

    def patches(self, images: Tensor) -> Tensor:
        """Return what a hidden unit multiplies its weights with, float64 (rows, weights)."""
        if self.patch_size is None:
            return images.double()
        cut = nn.functional.unfold(images.double(), self.patch_size, stride=self.stride)
        return cut.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of patches."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, architecture: Architecture, images: Tensor) -> Self:
        """Return the moments of all patches of some images."""
        blocks = images.split(BLOCK)
        n = len(architecture.patches(images[:1])) * len(images)
        mean = sum(architecture.patches(block).sum(dim=0) for block in blocks) / n
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for block in blocks:
            rows = architecture.patches(block) - mean
            covariance.addmm_(rows.T, rows, alpha=1 / n)
        return cls(mean, covariance)

    @cached_property
    def directions(self) -> tuple[Tensor, Tensor]:
        """Standard deviations (r,) and principal directions (d, r), the largest first."""
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = torch.arange(len(values) - 1, -1, -1)[: int((values > 1e-9 * values[-1]).sum())]
        return values[kept].sqrt(), vectors[:, kept]

    def normalize(self, network: nn.Sequential) -> None:
        """Give a network the statistics of these patches, and leave it in eval mode."""
        weights = network[0].weight.detach().flatten(1).double()
        norm = network.eval()[1]
        norm.running_mean.copy_(weights @ self.mean)
        norm.running_var.copy_(((weights @ self.covariance) * weights).sum(dim=1))

    def energy(self, network: nn.Sequential) -> np.ndarray:
        """Return the share (r,) of each singular direction in the hidden weights.

        Before its ReLU a unit is ``Z q`` with Z the whitened patches and a column of ones. The
        directions are those of the patches, the largest singular value first; shares are the
        diagonal of ``sum_j |v_j| q_j q_j^T / |q_j|`` without the ones, divided by its trace: of
        the mass ``|q_j| |v_j|``, which is what the penalty sums, the part along each direction.
        """
        deviations, V = self.directions
        norm, output = network[1], network[-1].weight.detach().double()
        q = network[0].weight.detach().flatten(1).double() @ V * deviations
        q *= (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double()[:, None]
        sizes = (q.square().sum(dim=1) + norm.bias.detach().double().square()).sqrt()
        masses = output.reshape(len(output), len(q), -1).square().sum(dim=(0, 2)).sqrt()
        shares = (masses / sizes.clamp_min(1e-30)) @ q.square()
        return (shares / shares.sum()).numpy()


def penalty(network: nn.Sequential, alpha: float) -> Tensor:
    """Return the penalty of the training problem."""
    decayed = (network[1].weight, network[1].bias, network[-1].weight)
    return 0.5 * alpha * sum(w.square().sum() for w in decayed)


@torch.no_grad()
def evaluate(
    network: nn.Sequential, images: Tensor, y: Tensor, alpha: float
) -> tuple[float, float]:
    """Return the objective and the accuracy of a network that is in eval mode."""
    outputs = torch.cat([network(block.to(network[-1].weight)) for block in images.split(BLOCK)])
    loss = nn.functional.cross_entropy(outputs.double(), y)
    accuracy = outputs.argmax(dim=1).eq(y).double().mean()
    return float(loss + penalty(network, alpha)), float(accuracy)


def training(
    network: nn.Sequential,
    images: Tensor,
    y: Tensor,
    *,
    optimizer: str,
    rate: float,
    epochs: int,
    alpha: float,
) -> Iterator[tuple[int, float]]:
    """Train in mini-batches of 100 under a cosine schedule.

    Yields the number of epochs and the processor seconds they took, before the first epoch and
    after each one; the network may be looked at, in eval mode too, between them.
    """
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    more = {} if optimizer == "adam" else {"momentum": 0.9}
    stepper = kind(network.parameters(), rate, **more)
    steps, seconds = epochs * -(-len(images) // 100), 0.0
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, steps)
    yield 0, seconds
    for epoch in range(1, epochs + 1):
        begin = time.process_time()
        network.train()
        for rows in torch.randperm(len(images)).split(100):
            stepper.zero_grad()
            loss = nn.functional.cross_entropy(network(images[rows]), y[rows])
            (loss + penalty(network, alpha)).backward()
            stepper.step()
            schedule.step()
        seconds += time.process_time() - begin
        yield epoch, seconds
