"""
What does batch normalization do to the condition of training?
==============================================================

The flatter a loss is in some directions, compared with its steepest one, the more steps gradient
descent takes. :func:`~sklearn_convexbn.conditioning` computes the spectrum of the Hessian of the
hidden layer in three coordinates: those of a plain layer on X, those of a batch-normalized one, and
whitened ones, which the convex program is stated in. Four claims of the literature are looked at,
and where they do not hold.
"""

# %%
# Spectra before and after
# ------------------------
#
# Claim: batch normalization improves the conditioning of a layer (Huang et al., arXiv:2002.10801).
# The diabetes data in their own units, and with standardized columns; a random network and the
# optimum of the training problem.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import ConvexBNRegressor, certify, conditioning

raw, y = load_diabetes(return_X_y=True, scaled=False)
y = (y - y.mean()) / y.std()
standardized = StandardScaler().fit_transform(raw)
ALPHA = 0.03

fig, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
print(f"condition numbers{'':15}{'gram':>10}{'initial':>10}{'final':>10}")
for axis, title, X in zip(axes, ("raw", "standardized"), (raw, standardized), strict=True):
    model = ConvexBNRegressor(ALPHA, shrinkage=0, random_state=0).fit(X, y)
    spectra = conditioning(model, X, y, random_state=0)
    for color, name in zip(("C1", "C0", "C2"), spectra._fields, strict=True):
        layer = getattr(spectra, name)
        for style, at in ((":", "initial"), ("-", "final")):
            values = getattr(layer, at).eigenvalues
            place = np.linspace(0, 100, len(values))
            axis.semilogy(place, values / values[0], style, color=color, label=f"{name}, {at}")
        numbers = "".join(f"{spectrum.condition_number():10.1e}" for spectrum in layer)
        print(f"{title:16}{name:16}{numbers}")
    axis.set(title=f"{title} columns", xlabel="share of the spectrum, %", ylim=(1e-14, 2))
    axis.grid(alpha=0.3)
axes[0].set_ylabel("eigenvalue / largest")
axes[1].legend(loc="lower left", fontsize="small")
plt.show()

# %%
# It holds where columns have offsets and units of their own, and there it is mostly the subtracted
# mean. With standardized columns the normalized layer is conditioned no better than the plain one:
# dividing each unit by its deviation does not decorrelate the columns. Whitening does.


# %%
# Steps of gradient descent
# -------------------------
#
# Claim: a normalized network can be trained faster than a plain one (Dukler, Gu and Montufar,
# arXiv:2006.06878). Ten columns whose covariance has a condition number from 1 to 1000; full-batch
# gradient descent on 20 units without weight decay, the best of five step sizes at each step,
# until the error is 5 % of the target's variance. "Offset" adds 2 to each column; the other two
# coordinates ignore that.

RATES = torch.tensor([0.01, 0.03, 0.1, 0.3, 0.6], dtype=torch.float64)[:, None, None]
N_STEPS, WIDTH, CLOSE = 1000, 20, 0.05


def columns(condition, rng):
    """Return 100 rows of ten rotated columns, and a target that all directions matter for."""
    Z = rng.standard_normal((100, 10))
    y = np.maximum(Z @ rng.standard_normal((10, 3)), 0.0).sum(axis=1)
    rotation = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    X = Z * np.geomspace(1.0, condition**-0.5, 10) @ rotation
    return X / X.std(), (y - y.mean()) / y.std()


def output(rows, weights, normalized):
    """Return the output (rates, n, 1) of networks with weights for each rate."""
    W, gamma, beta, V, b = weights
    H = rows @ W
    if normalized:
        H = (H - H.mean(1, keepdim=True)) / H.std(1, correction=0, keepdim=True) * gamma
    return torch.relu(H + beta) @ V + b


def descent(X, y, normalized, *, rates=RATES, length=1.0, alpha=0.0):
    """Return the mean squared errors (steps, rates) of gradient descent, and the last weights."""
    rng = np.random.default_rng(0)
    rows, target = torch.tensor(X), torch.tensor(y)[:, None]
    W = length * rng.standard_normal((X.shape[1], WIDTH)) / X.shape[1] ** 0.5
    V = rng.standard_normal((WIDTH, 1)) / WIDTH**0.5
    start = [W, np.ones((1, WIDTH)), np.zeros((1, WIDTH)), V, np.zeros((1, 1))]
    weights = [torch.tensor(a).repeat(len(rates), 1, 1).requires_grad_() for a in start]
    errors = []
    for _ in range(N_STEPS):
        error = ((output(rows, weights, normalized) - target) ** 2).mean((1, 2))
        errors.append(error.detach().numpy())
        decay = sum((w**2).sum() for w in weights[1:4])
        objective = 0.5 * (error.sum() + alpha * decay)
        moved = weights if normalized else [weights[0], *weights[2:]]
        with torch.no_grad():
            slopes = torch.autograd.grad(objective, moved)
            for weight, slope in zip(moved, slopes, strict=True):
                weight.sub_(rates * slope)
    return np.array(errors), [w.detach() for w in weights]


conditions = np.geomspace(1.0, 1000.0, 4)
colors = {"plain, offset": "C3", "plain": "C1", "batch_norm": "C0", "whitened": "C2"}
steps = {name: [] for name in colors}
fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for condition in conditions:
    X, target = columns(condition, np.random.default_rng(1))
    whitened = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)[0] * len(X) ** 0.5
    for name, rows in zip(colors, (X + 2, X, X, whitened), strict=True):
        best = np.fmin.reduce(descent(rows, target, name == "batch_norm")[0], axis=1)
        close = best <= CLOSE
        steps[name].append(int(close.argmax()) if close.any() else np.nan)
        if condition == conditions[-1]:
            axes[0].loglog(np.arange(1, N_STEPS + 1), best, color=colors[name], label=name)
for name, taken in steps.items():
    axes[1].loglog(conditions, taken, "o-", color=colors[name], label=name)
    print(f"steps to 5 %, {name:14}", *(f"{n:6}" for n in taken))
axes[0].set(xlabel="steps", ylabel="error / variance", title="condition 1000")
axes[1].set(xlabel="condition number of the covariance", ylabel="steps to 5 %")
axes[1].set(title=f"not drawn: more than {N_STEPS} steps")
axes[1].set_yticks([30, 100, 300, 1000], [30, 100, 300, 1000])
axes[1].minorticks_off()
axes[0].legend()
plt.show()


# %%
# Well conditioned, all need the same few steps. The steps of the plain network and of the
# normalized one grow with the condition number, those on whitened rows do not. Normalization gains
# little where columns have mean zero, and most of all where they do not.
#
# Orthogonal or Gaussian weights in a deep linear network
# -------------------------------------------------------
#
# Claim: with orthogonal initial matrices the width that gradient descent needs does not grow with
# depth, with Gaussian ones it does (Hu, Xiao and Pennington, arXiv:2001.05992). Linear networks of
# 2 to 32 square layers, a random linear target on white rows, error after 200 steps.


def deep_linear(depth, width, orthogonal, rate, rng):
    """Return the relative error after 200 steps of gradient descent on a product of matrices."""
    layers = rng.standard_normal((depth, width, width)) / width**0.5
    if orthogonal:
        layers = np.linalg.qr(layers)[0]
    target = rng.standard_normal((width, width)) / width**0.5
    below, above = np.empty_like(layers), np.empty_like(layers)
    for _ in range(200):
        below[0] = above[-1] = np.eye(width)
        for i in range(1, depth):
            below[i] = layers[i - 1] @ below[i - 1]
            above[-1 - i] = above[-i] @ layers[-i]
        residual = above[0] @ layers[0] - target
        if np.abs(residual).max() > 1e3:
            return np.inf
        layers -= rate * np.swapaxes(above, 1, 2) @ residual @ np.swapaxes(below, 1, 2)
    return (residual**2).sum() / (target**2).sum()


depths = [2, 4, 8, 16, 32]
fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
for orthogonal, color in ((True, "C0"), (False, "C3")):
    for width, style in ((8, "o:"), (64, "s-")):
        errors = [
            min(
                deep_linear(depth, width, orthogonal, rate / depth, np.random.default_rng(0))
                for rate in (0.03, 0.1, 0.3, 1.0)
            )
            for depth in depths
        ]
        name = f"{'orthogonal' if orthogonal else 'Gaussian'}, width {width}"
        ax.loglog(depths, np.maximum(errors, 1e-12), style, color=color, label=name)
        print(f"{name:22}", *(f"{error:9.1e}" for error in errors))
ax.set(xlabel="layers", ylabel="relative error after 200 steps")
ax.set_xticks(depths, depths)
ax.minorticks_off()
ax.legend()
plt.show()

# %%
# What the landscape loses
# ------------------------
#
# Claim: normalization makes training stable, and can look like a local minimum where there is none
# (Huang et al.): as the length of the weights does not matter, a gradient falls with that
# length and a step's effect with its square. The same network, started with weights of length 1
# to 100 times the usual one.

X, target = columns(10.0, np.random.default_rng(1))
fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
print("\nlength   error   gap, estimated   within its own arrangements")
for length in (1.0, 10.0, 100.0):
    errors, weights = descent(X, target, True, rates=RATES[-2:-1], length=length, alpha=ALPHA)
    W, gamma, beta, V, b = (w[0] for w in weights)
    m = torch.nn
    network = m.Sequential(m.Linear(10, WIDTH), m.BatchNorm1d(WIDTH, eps=0.0), m.ReLU())
    network.append(m.Linear(WIDTH, 1)).double()
    with torch.no_grad():
        network[0].weight.copy_(W.T)
        network[1].weight.copy_(gamma[0])
        network[1].bias.copy_(beta[0])
        network[3].weight.copy_(V.T)
        network[3].bias.copy_(b[0])
    found = certify(network, X, target, alpha=ALPHA, effort="quick", random_state=0)
    print(f"{length:6g}{errors[-1, 0]:8.3f}{found.gap:17.1%}{found.stationarity_gap:19.1%}")
    ax.loglog(np.arange(1, N_STEPS + 1), errors, label=f"weights {length:g} times as long")
ax.set(xlabel="steps", ylabel="error / variance")
ax.legend()
plt.show()

# %%
# Orthogonal networks reach about the same error at all depths from 4 on, at both widths. Gaussian
# ones do not, and a width of 64 is not enough to help them. In the last picture two curves look
# like the neighbourhood of a local minimum, while :func:`~sklearn_convexbn.certify` finds that they
# are no stationary points, and what could be gained. Coordinates of the convex program have
# no length that is free to grow: its steps do not depend on it.
