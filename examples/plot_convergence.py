"""
What a certificate says
=======================

A fit keeps two numbers: the objective of its network, and a lower bound on the objective of any
network of any width. It stops when their relative difference, the gap, is at most ``tol``. So
``tol`` is a promise about the training objective. The example shows how the two numbers close in on
each other, what a looser or tighter ``tol`` costs, and what it changes on test data.
"""

# %%
# One fit, round by round
# -----------------------
#
# The diabetes data have 10 features. There the bound rests on a search for the hidden unit that
# would improve the network most. The search can miss it, so the bound is an estimate, and the
# certificate says so. Once the fit would stop, an independent search gives the bound that counts,
# marked by a square; where it finds more than `tol` allows, the fit goes on.

import matplotlib.pyplot as plt
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from sklearn_convexbn import ConvergenceDisplay, ConvexBNRegressor

X, y = load_diabetes(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
tight = ConvexBNRegressor(alpha=0.03, tol=0.001, random_state=0).fit(X_train, y_train)
print(tight.certificate_)
ConvergenceDisplay.from_estimator(tight)
plt.show()

# %%
# What tol costs and what it changes
# ----------------------------------
#
# The same fit, stopped earlier. The excess is what a network's objective has over the lowest one
# in the table; it cannot be above the gap as long as the bound holds. Whether the last per cent of
# the objective matters for the test score can be read in the last column.

tolerances = [0.3, 0.1, 0.03, 0.01, 0.003]
fits = [
    ConvexBNRegressor(0.03, tol=tol, random_state=0).fit(X_train, y_train) for tol in tolerances
]
fits.append(tight)
lowest = min(fit.objective_ for fit in fits)
excesses = [1 - lowest / fit.objective_ for fit in fits]
scores = [fit.score(X_test, y_test) for fit in fits]
print(f"{'tol':>6}{'rounds':>8}{'seconds':>9}{'units':>7}{'objective':>11}{'gap':>9}", end="")
print(f"{'excess':>9}{'test R2':>9}")
for fit, excess, score in zip(fits, excesses, scores, strict=True):
    print(
        f"{fit.tol:6g}{fit.n_iter_:8d}{fit.history_['time'][-1]:9.2f}{fit.n_neurons_:7d}"
        f"{fit.objective_:11.1f}{fit.dual_gap_:9.2%}{excess:9.2%}{score:9.4f}"
    )
held = sum(excess <= fit.dual_gap_ for fit, excess in zip(fits, excesses, strict=True))
print(f"\nexcess at most the gap: {held} of {len(fits)}; ", end="")
print(f"test R2 from {min(scores):.4f} to {max(scores):.4f}")

# %%
# On the left, each fit's interval from its lower bound to its objective; the optimum lies in all of
# them if all bounds hold. On the right, the test scores, on an axis from zero.

figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
places = range(len(fits))
for i, fit in enumerate(fits):
    left.plot([i, i], [fit.certificate_.dual, fit.objective_], color="0.6", lw=6, alpha=0.5)
left.plot(places, [fit.objective_ for fit in fits], "o", color="C0", label="objective")
left.plot(places, [f.certificate_.dual for f in fits], "^", color="C1", label="lower bound")
left.axhline(lowest, color="C0", ls=":", lw=1, label="lowest objective")
left.set(ylabel="training objective", title="Where the optimum is")
left.legend(loc="lower right")
right.bar(places, scores, color="C2", width=0.6)
right.set(ylabel="R2 on the test rows", title="What it changes on test data")
for axis in (left, right):
    axis.set_xticks(places, [f"{fit.tol:g}" for fit in fits])
    axis.set_xlabel("tol")
plt.show()

# %%
# When the bound is proven
# ------------------------
#
# With two directions kept, the largest possible improvement is computed over all activation
# patterns before the fit stops. The last bound is then a proof, and the certificate is exact. It
# is about the networks that see these two directions: its objective is not to be compared with
# those above.

exact = ConvexBNRegressor(alpha=0.03, n_components=2, tol=1e-4, random_state=0)
exact.fit(X_train, y_train)
print(f"{exact.certificate_.kind}: {exact.certificate_}")
ConvergenceDisplay.from_estimator(exact)
plt.show()
