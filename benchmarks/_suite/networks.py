"""Two-layer networks with batch normalization in torch: the peers that gradients train.

They minimise the objective of the convex program: the mean cross-entropy plus alpha / 2 times the
squares of the weights and biases of batch normalization and of the output weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from sklearn_convexbn._pooling import pooling_window

Network = torch.nn.Sequential
Array = NDArray[np.float64]

#: Images that are handled at once where a pass is over all of them.
BLOCK = 500


@dataclass(frozen=True)
class Architecture:
    """A dense network, or a convolutional one where `patch_size` is given, on images."""

    image_shape: tuple[int, int, int]
    patch_size: int | None = None
    stride: int = 1
    pooling: int = 1

    def network(self, units: int, n_classes: int) -> Network:
        """Return a new network; the first layer has no bias, which normalization would cancel."""
        height, width, channels = self.image_shape
        if self.patch_size is None:
            return Network(
                torch.nn.Linear(height * width * channels, units, bias=False),
                torch.nn.BatchNorm1d(units),
                torch.nn.ReLU(),
                torch.nn.Linear(units, n_classes),
            )
        windows = [
            pooling_window((size - self.patch_size) // self.stride + 1, self.pooling)
            for size in (height, width)
        ]
        kernel, stride = zip(*windows, strict=True)
        return Network(
            torch.nn.Conv2d(channels, units, self.patch_size, stride=self.stride, bias=False),
            torch.nn.BatchNorm2d(units),
            torch.nn.ReLU(),
            torch.nn.AvgPool2d(kernel, stride),
            torch.nn.Flatten(),
            torch.nn.Linear(units * self.pooling**2, n_classes),
        )

    def tensor(self, X: NDArray[np.uint8]) -> torch.Tensor:
        """Return images (n, height, width, channels) of bytes as the network takes them."""
        images = torch.as_tensor(np.ascontiguousarray(X)).float() / 255 - 0.5
        return images.flatten(1) if self.patch_size is None else images.permute(0, 3, 1, 2)

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """Return what a hidden unit multiplies its weights with, float64 (rows, weights)."""
        if self.patch_size is None:
            return images.double()
        cut = torch.nn.functional.unfold(images.double(), self.patch_size, stride=self.stride)
        return cut.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of patches."""

    mean: torch.Tensor
    covariance: torch.Tensor

    @classmethod
    def of(cls, architecture: Architecture, images: torch.Tensor) -> Moments:
        """Return the moments of all patches of some images."""
        blocks = images.split(BLOCK)
        per_image = len(architecture.patches(images[:1]))
        n = per_image * len(images)
        mean = sum(architecture.patches(block).sum(dim=0) for block in blocks) / n
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for block in blocks:
            rows = architecture.patches(block) - mean
            covariance.addmm_(rows.T, rows, alpha=1 / n)
        return cls(mean, covariance)

    @cached_property
    def directions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Standard deviations (r,) and principal directions (d, r), the largest first."""
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = torch.arange(len(values) - 1, -1, -1)[: int((values > 1e-9 * values[-1]).sum())]
        return values[kept].sqrt(), vectors[:, kept]

    def normalize(self, network: Network) -> None:
        """Give a network the statistics of these patches, and leave it in eval mode."""
        weights = network[0].weight.detach().flatten(1).double()
        norm = network.eval()[1]
        norm.running_mean.copy_(weights @ self.mean)
        norm.running_var.copy_(((weights @ self.covariance) * weights).sum(dim=1))

    def energy(self, network: Network) -> Array:
        """Return the share (r,) of each singular direction in the hidden weights.

        Before its ReLU a unit is ``Z q`` with Z the whitened patches and a column of ones. The
        directions are those of the patches, the largest singular value first; shares are the
        diagonal of ``sum_j |v_j| q_j q_j^T / |q_j|`` without the ones, divided by its trace: of
        the mass ``|q_j| |v_j|``, which is what the penalty sums, the part along each direction.
        """
        deviations, V = self.directions
        norm, output = network[1], network[-1].weight.detach().double()
        units = len(norm.weight)
        q = network[0].weight.detach().flatten(1).double() @ V * deviations
        q *= (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double()[:, None]
        sizes = (q.square().sum(dim=1) + norm.bias.detach().double().square()).sqrt()
        masses = output.reshape(len(output), units, -1).square().sum(dim=(0, 2)).sqrt()
        shares = (masses / sizes.clamp_min(1e-30)) @ q.square()
        return (shares / shares.sum()).numpy()


def penalty(network: Network, alpha: float) -> torch.Tensor:
    """Return the penalty of the training problem."""
    decayed = (network[1].weight, network[1].bias, network[-1].weight)
    return 0.5 * alpha * sum(w.square().sum() for w in decayed)  # type: ignore[return-value]


@torch.no_grad()
def evaluate(
    network: Network, images: torch.Tensor, y: torch.Tensor, alpha: float
) -> tuple[float, float]:
    """Return the objective and the accuracy of a network that is in eval mode."""
    outputs = torch.cat([network(block.to(network[-1].weight)) for block in images.split(BLOCK)])
    loss = torch.nn.functional.cross_entropy(outputs.double(), y)
    accuracy = outputs.argmax(dim=1).eq(y).double().mean()
    return float(loss + penalty(network, alpha)), float(accuracy)


def training(
    network: Network,
    images: torch.Tensor,
    y: torch.Tensor,
    *,
    optimizer: str,
    rate: float,
    epochs: int,
    alpha: float,
    batch: int = 100,
) -> Iterator[tuple[int, float]]:
    """Train in mini-batches under a cosine schedule.

    Yields the number of epochs and the processor seconds they took, before the first epoch and
    after each one; the network may be looked at, in eval mode too, between them.
    """
    kinds = {
        "adam": lambda: torch.optim.Adam(network.parameters(), rate),
        "sgd": lambda: torch.optim.SGD(network.parameters(), rate, momentum=0.9),
    }
    stepper = kinds[optimizer]()
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, steps)
    seconds = 0.0
    yield 0, seconds
    for epoch in range(1, epochs + 1):
        begin = time.process_time()
        network.train()
        for rows in torch.randperm(len(images)).split(batch):
            stepper.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(images[rows]), y[rows])
            (loss + penalty(network, alpha)).backward()
            stepper.step()
            schedule.step()
        seconds += time.process_time() - begin
        yield epoch, seconds
