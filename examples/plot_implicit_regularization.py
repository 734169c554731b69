"""
The bias of gradient descent, made a parameter
==============================================

Gradient descent moves a network with batch normalization along the directions of large variance
first and along those of small variance last, or never. The optimum of the same training problem
has no such preference: whitening gives every direction the same say. ``n_components`` and
``shrinkage`` bring the preference back, and say how much of it.

The example watches SGD on scikit-learn's digits, looks at the optimum of the same problem, and
compares what they predict. The guide's page on implicit regularization has the same for MNIST,
Fashion-MNIST and CIFAR-10, dense and convolutional, and says where it does not hold.
"""

# %%
# The energy of a network along the singular directions
# -----------------------------------------------------
#
# Before its ReLU a hidden unit is ``Z q``, with Z the whitened training rows and a column of ones.
# Its part of the penalty is the mass ``|q| |v|``; how that divides among the directions of q,
# over all units, is the diagonal of ``sum_j |v_j| q_j q_j^T / |q_j|``.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_convexbn import ConvexBNClassifier

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X / 16, y, train_size=500, stratify=y, random_state=0)
_, values, directions = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
rank = int((values > 1e-9 * values[0]).sum())
values, directions = values[:rank], directions[:rank]


def normalize(network):
    """Give batch normalization the statistics of all training rows."""
    with torch.no_grad():
        H = network[0](torch.tensor(X, dtype=network[0].weight.dtype))
        network[1].running_mean.copy_(H.mean(dim=0))
        network[1].running_var.copy_(H.var(dim=0, correction=0))
    return network.eval()


def energy(network):
    """Return the share of each singular direction, the largest first."""
    linear, norm, _, output = (layer.double() for layer in network)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    q = linear.weight.detach().numpy() @ directions.T * values / np.sqrt(len(X)) * scale[:, None]
    size = np.hypot(np.linalg.norm(q, axis=1), norm.bias.detach().numpy())
    mass = np.linalg.norm(output.weight.detach().numpy(), axis=0) * size
    share = mass @ (q / size[:, None]) ** 2
    return share / share.sum()


def accuracy(network):
    """Return the accuracy on the test rows."""
    with torch.no_grad():
        outputs = network(torch.tensor(X_test, dtype=network[0].weight.dtype))
    return float((outputs.argmax(dim=1).numpy() == y_test).mean())


# %%
# SGD, and what it has learned on the way
# ---------------------------------------
#
# The objective is the mean cross-entropy plus alpha / 2 times the squared weights and biases of
# batch normalization and the squared output weights.

ALPHA, EPOCHS, LOOKS = 3e-3, 100, (0, 1, 10, 100)
torch.manual_seed(0)
network = torch.nn.Sequential(
    torch.nn.Linear(64, 100, bias=False),
    torch.nn.BatchNorm1d(100),
    torch.nn.ReLU(),
    torch.nn.Linear(100, 10),
)
optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
rows, labels = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
seen = {}
for epoch in range(EPOCHS + 1):
    if epoch in LOOKS:
        seen[f"SGD, {epoch} epochs"] = energy(normalize(network))
        network.float().train()
    for batch in torch.randperm(len(X)).split(50) if epoch < EPOCHS else ():
        penalty = sum(w.square().sum() for w in (*network[1].parameters(), network[3].weight))
        loss = torch.nn.functional.cross_entropy(network(rows[batch]), labels[batch])
        optimizer.zero_grad()
        (loss + ALPHA / 2 * penalty).backward()
        optimizer.step()
print(f"SGD: {100 * accuracy(normalize(network)):.1f} % of the test images")

# %%
# The optimum, with all directions and with fewer
# -----------------------------------------------
#
# Each is within an estimated 5 % of its global optimum.

accuracies = {}
for k in (5, 10, 20, 30, 40, rank):
    model = ConvexBNClassifier(ALPHA, n_components=k, shrinkage=0, tol=0.05, random_state=0).fit(
        X, y
    )
    accuracies[k] = model.score(X_test, y_test)
    print(f"optimum of {k} directions: {100 * accuracies[k]:.1f} %, {model.n_neurons_} units")
    if k in (20, rank):
        seen[f"optimum, {k} directions"] = energy(model.to_torch())
shrunk = ConvexBNClassifier(ALPHA, shrinkage=0.5, tol=0.05, random_state=0).fit(X, y)
print(f"optimum with shrinkage 0.5: {100 * shrunk.score(X_test, y_test):.1f} %")
seen["optimum, shrinkage 0.5"] = energy(shrunk.to_torch())

# %%
# The picture
# -----------
#
# Left: the share of the energy in the first directions. Right: test accuracy over k.

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, share in seen.items():
    style = "-" if name.startswith("SGD") else "--"
    left.semilogx(np.arange(1, rank + 1), share.cumsum(), style, label=name)
left.set(xlabel="singular directions, the largest first", ylabel="share of the energy")
left.legend(fontsize="small")
right.plot(
    list(accuracies), [100 * a for a in accuracies.values()], "ko-", label="optimum, k directions"
)
right.axhline(100 * accuracy(network), color="C3", label="SGD")
right.axhline(
    100 * shrunk.score(X_test, y_test), color="C6", ls="--", label="optimum, shrinkage 0.5"
)
right.set(xlabel="k", ylabel="test accuracy, %")
right.legend(fontsize="small")
for axis in (left, right):
    axis.grid(alpha=0.3)
plt.show()
