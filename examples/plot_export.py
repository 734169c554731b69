"""
Export to torch and ONNX
========================

A fitted network is a handful of arrays. ``to_torch()`` returns it as a torch module, with batch
normalization as a layer of its own or folded into the first linear layer, and the folded one goes
on to ONNX. The example checks that all of them predict the same, and then trains the torch module
further: the certificate says how much there is to gain.
"""

# %%
# A network with an exact certificate
# -----------------------------------
#
# Two features of the diabetes data: the body mass index and a blood measurement. With two features
# the bound is computed over all activation patterns and the certificate is exact. The features are
# given to the network as they are, in their units: batch normalization is part of it.

import copy
import inspect
import logging
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_diabetes

from sklearn_convexbn import ConvexBNRegressor

data = load_diabetes(scaled=False)
X, y = data.data[:, [data.feature_names.index(name) for name in ("bmi", "s5")]], data.target
model = ConvexBNRegressor(alpha=0.03, tol=1e-6, random_state=0).fit(X, y)
expected = model.predict(X)
print(f"{model.n_neurons_} hidden units")
print(f"certificate ({model.certificate_.kind}): {model.certificate_}")

# %%
# To torch
# --------
#
# In eval mode both modules compute what ``predict`` does. The unfolded one does so in train mode
# too, on the whole training set, where batch normalization takes its statistics afresh. The
# modules are in double precision; ``.float()`` makes them single.

rows = torch.tensor(X)
network, folded = model.to_torch(), model.to_torch(fold=True)
print(f"unfolded: {network}\nfolded: {folded}\n")


def difference(output: torch.Tensor | np.ndarray) -> float:
    """Return the largest difference from predict, relative to the largest prediction."""
    values = output.detach().numpy() if isinstance(output, torch.Tensor) else output
    return float(np.abs(values[:, 0] - expected).max() / np.abs(expected).max())


single = copy.deepcopy(folded).float()
print(f"torch, eval mode:          {difference(network(rows)):.1e}")
print(f"torch, train mode:         {difference(copy.deepcopy(network).train()(rows)):.1e}")
print(f"torch, folded:             {difference(folded(rows)):.1e}")
print(f"torch, folded, in float32: {difference(single(rows.float())):.1e}")

# %%
# To ONNX
# -------
#
# ``torch.onnx.export`` takes the folded module; marking the batch size as dynamic lets the file
# accept any number of rows. It needs the packages ``onnx`` and ``onnxscript``, and running the
# file needs ``onnxruntime``. Where they are missing this part says so and is left out.

try:
    import onnxruntime
    import onnxscript  # noqa: F401

    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        raise ImportError("torch 2.9 or newer is needed")
    # The exporter reports on torch's own insides: packages it could do without, deprecations.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            folded,
            (rows[:2],),
            path,
            input_names=["X"],
            output_names=["y"],
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        size = path.stat().st_size
        session = onnxruntime.InferenceSession(path)
    (output,) = session.run(["y"], {"X": X})
    print(f"network.onnx: {size} bytes, input {session.get_inputs()[0].shape}")
    print(f"onnxruntime, {len(X)} rows: {difference(output):.1e} from predict")
except ImportError as error:
    print(f"ONNX left out: {error}")

# %%
# Training it further
# -------------------
#
# The objective in torch: half the mean squared error plus the weight decay, on everything but the
# first linear layer, whose scale batch normalization cancels, and the last bias. ``weight_decay_``
# is ``alpha`` in the units of y. At the start it is ``objective_``. No steps of whatever optimizer
# can take it below ``certificate_.dual``, since that bounds all networks of this form from below.

target = torch.tensor(y)


def objective(module: torch.nn.Sequential) -> torch.Tensor:
    """Return the training objective of a module in train mode."""
    decayed = [module[1].weight, module[1].bias, module[3].weight]
    loss = 0.5 * ((module(rows)[:, 0] - target) ** 2).mean()
    return loss + 0.5 * model.weight_decay_ * sum((w**2).sum() for w in decayed)


start = objective(copy.deepcopy(network).train()).item()
print(f"objective in torch: {start:.6f}; objective_: {model.objective_:.6f}")

N_STEPS = 300
curves = {}
print(f"\n{'learning rate':>13}{'lowest':>11}{'last':>11}   relative to the start; {N_STEPS} steps")
for rate in (1e-4, 1e-5, 1e-6):
    module = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    values = [objective(module).item()]
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        objective(module).backward()
        optimizer.step()
        values.append(objective(module).item())
    curves[rate] = np.array(values) / start - 1
    print(f"{rate:13g}{curves[rate].min():11.1e}{curves[rate][-1]:11.1e}")
print(f"{'lower bound':>13}{model.certificate_.dual / start - 1:11.1e}")

# %%
# Full-batch gradient steps from the fitted network, on an axis that is linear near zero. Where
# data points lie on the kink of a hidden unit, the objective has a kink too, and steps of a fixed
# length go to and fro across it.

units = X @ model.coefs_[0] + model.intercepts_[0]
on_kink = (np.abs(units) < 1e-6 * units.std(axis=0)).sum(axis=0)
print(f"data points on the kink of each hidden unit, to 1e-6 of its deviation: {on_kink}")

figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
for rate, curve in curves.items():
    axis.plot(curve, label=f"learning rate {rate:g}")
axis.axhline(0, color="0.6", lw=1)
axis.axhline(-model.dual_gap_, color="black", ls="--", label="lower bound of the certificate")
axis.set_yscale("symlog", linthresh=1e-8)
axis.set(
    xlabel="gradient steps from the fitted network",
    ylabel="change of the objective, relative",
    title="Gradient descent from the fitted network",
)
axis.legend(loc="center right", bbox_to_anchor=(1, 0.27))
plt.show()
