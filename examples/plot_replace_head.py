"""
Replacing the head of a small CNN
=================================

The last layers of many networks are Linear, BatchNorm1d, ReLU, Linear: with the features before
them fixed, that is the network of this package, whose training problem has a convex form. The
example trains a small CNN on scikit-learn's digits by Adam, asks how far its head is from the
optimum on its own features, and replaces it by a head that is optimal to a known gap. The second
part shows what an optimal head does to its training rows when there are more features than rows.
"""

# %%
# A CNN trained by Adam
# ---------------------
#
# The loss is the cross-entropy plus the weight decay of the training problem here, on the scales
# and shifts of batch normalization and on the output weights. Half of the images are for training.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from sklearn_convexbn import ConvexBNClassifier, certify, replace_head

ALPHA, WIDTH, BATCH, N_EPOCHS = 0.01, 64, 64, 30

digits = load_digits()
images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
labels = digits.target
train, test = train_test_split(
    np.arange(len(labels)), test_size=0.5, random_state=0, stratify=labels
)

torch.manual_seed(0)
features = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(8, 8, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
)
head = nn.Sequential(
    nn.Linear(32, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)
)
cnn = nn.Sequential(features, *head)
decayed = [head[1].weight, head[1].bias, head[3].weight]
targets = torch.tensor(labels)


def accuracy(network: nn.Module, rows: np.ndarray) -> float:
    """Return the share of images that a network in eval mode classifies correctly."""
    with torch.no_grad():
        return float((network(images[rows]).argmax(1) == targets[rows]).double().mean())


def certificate_of_head() -> tuple[float, float]:
    """Return the objective of the CNN's head on its features, and the gap of a quick search."""
    with torch.no_grad():
        values = features(images[train]).double().numpy()
    found = certify(head, values, labels[train], alpha=ALPHA, effort=500, random_state=0)
    return found.primal, found.gap


optimizer = torch.optim.Adam(cnn.parameters(), lr=3e-3)
course = {}
print("Adam on all layers, and its head as judged on the features of the moment")
print(f"{'epoch':>6}{'objective':>11}{'gap':>8}{'test accuracy':>15}")
for epoch in range(1, N_EPOCHS + 1):
    cnn.train()
    for rows in np.array_split(train[torch.randperm(len(train)).numpy()], len(train) // BATCH):
        optimizer.zero_grad()
        decay = sum((w**2).sum() for w in decayed)
        loss = nn.functional.cross_entropy(cnn(images[rows]), targets[rows])
        (loss + 0.5 * ALPHA * decay).backward()
        optimizer.step()
    cnn.eval()
    if epoch in (1, 2, 4, 8, 16, N_EPOCHS):
        course[epoch] = (*certificate_of_head(), accuracy(cnn, test))
        print("{:6d}{:11.4f}{:8.1%}{:15.1%}".format(epoch, *course[epoch]))

# %%
# Its head replaced
# -----------------
#
# ``replace_head`` runs the features once over the training images, fits the estimator to them and
# returns both parts as one torch module. The objective is that of the same training problem, so
# it can be compared with the one above; the search behind its gap is the more thorough one.

estimator = ConvexBNClassifier(ALPHA, shrinkage=0, tol=0.01, random_state=0)
network, optimum = replace_head(features, images[train], labels[train], estimator=estimator)
print(optimum.certificate_)

last = course[N_EPOCHS]
print(f"\n{'head':>10}{'units':>7}{'objective':>11}{'training':>10}{'test':>8}")
print(f"{'Adam':>10}{WIDTH:7d}{last[0]:11.4f}{accuracy(cnn, train):10.1%}{last[2]:8.1%}")
print(
    f"{'replaced':>10}{optimum.n_neurons_:7d}{optimum.objective_:11.4f}"
    f"{accuracy(network, train):10.1%}{accuracy(network, test):8.1%}"
)
with torch.no_grad():
    outputs = network(images[test]).numpy()
    scores = optimum.decision_function(features(images[test]).numpy())
print(f"Adam's objective is {last[0] / optimum.objective_ - 1:.1%} above that of the replaced head")
print(f"module in float32 against decision_function: {np.abs(outputs - scores).max():.1e}")

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
epochs = list(course)
left.semilogx(epochs, [course[e][0] for e in epochs], "o-", label="head trained by Adam")
left.axhline(optimum.objective_, color="C1", label="head replaced after the last epoch")
left.axhline(optimum.certificate_.dual, color="C1", ls=":", label="its lower bound")
left.set(ylabel="training objective of the head", ylim=(0, None))
right.semilogx(epochs, [100 * course[e][2] for e in epochs], "o-", label="CNN trained by Adam")
right.axhline(100 * accuracy(network, test), color="C1", label="head replaced")
right.set(ylabel="test accuracy, %")
for axis in (left, right):
    axis.set(xlabel="epoch of Adam")
    axis.set_xticks(epochs, epochs)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
plt.show()

# %%
# The lines of the replaced head belong to the features of the last epoch; earlier points of the
# curve are heads on other features, so their distance from the line is no gap. What is optimal is
# the training objective on fixed features: nothing makes the test accuracy follow, and the
# features were not trained for this head.

# %%
# Neural collapse in closed form
# ------------------------------
#
# With more features than rows the training problem has a closed form: one hidden unit a class, of
# one value on the training rows of its class and zero on all others. The variability within
# classes is gone, as observed late in the training of large networks. It is measured here as the
# scatter within classes over the scatter between them, for random features: four classes of 25
# rows, 400 features, and class means that are a little apart or not apart at all.


def scatter_ratio(values: np.ndarray, y: np.ndarray) -> float:
    """Return the trace of the scatter within classes over that of the scatter between them."""
    means = np.array([values[y == c].mean(axis=0) for c in np.unique(y)])
    within = ((values - means[y]) ** 2).sum()
    return float(within / ((means[y] - values.mean(axis=0)) ** 2).sum())


rng = np.random.default_rng(0)
y = np.repeat(np.arange(4), 25)
ratios = {}
print("scatter within classes / scatter between classes")
print(f"{'means':8}{'rows':>10}{'features':>11}{'hidden':>11}{'outputs':>11}{'accuracy':>10}")
for name, distance in (("apart", 0.2), ("equal", 0.0)):
    means = distance * rng.normal(size=(4, 400))
    rows = {"training": means[y] + rng.normal(size=(100, 400))}
    rows["fresh"] = means[y] + rng.normal(size=(100, 400))
    model = ConvexBNClassifier(ALPHA, loss="squared_error").fit(rows["training"], y)
    assert type(model.solver_).__name__ == "ClosedForm"
    assert model.certificate_.kind == "exact"
    for kind, X in rows.items():
        hidden = np.maximum(X @ model.coefs_[0] + model.intercepts_[0], 0)
        stages = (X, hidden, model.decision_function(X))
        ratios[name, kind] = [scatter_ratio(values, y) for values in stages]
        print(f"{name:8}{kind:>10}" + "".join(f"{r:11.2g}" for r in ratios[name, kind]), end="")
        print(f"{model.score(X, y):10.0%}")

figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
for i, ((name, kind), values) in enumerate(ratios.items()):
    style = "o-" if kind == "training" else "s--"
    axis.semilogy(range(3), values, style, color=f"C{i // 2}", label=f"means {name}, {kind} rows")
axis.set_xticks(range(3), ["features", "hidden\nactivations", "outputs"])
axis.set(ylabel="scatter within / between classes", title="Neural collapse of the closed form")
axis.grid(alpha=0.3)
axis.legend(fontsize=9)
plt.show()

# %%
# On the training rows the ratio falls to rounding error, with a certificate that is exact. It does
# so as well where the class means are equal and labels have nothing to do with the features: the
# collapse is a property of the training problem, and no sign of having learned anything. What
# fresh rows show is the signal alone: the ratio falls where the means are apart, though by far less
# than on the training rows, and does not where they are equal. The form is proven for balanced
# classes, as here; ``solver="auto"`` takes it only where its certificate closes.
