"""
Rows on several processes
=========================

Each process reads some of the rows, and all of them end with the same network. Start it with ::

    torchrun --nproc-per-node 2 examples/distributed.py

Here every process makes the same data and keeps its share; yours would read a file of its own.
"""

# %%
# The timeout is how long a process waits for another one before it gives up with an error.

from datetime import timedelta

import numpy as np
import torch.distributed as dist
from sklearn.datasets import make_friedman1

from sklearn_convexbn import ConvexBNRegressor, row_shards

dist.init_process_group("gloo", timeout=timedelta(minutes=1))
rank, size = dist.get_rank(), dist.get_world_size()

X, y = make_friedman1(20_000, n_features=5, noise=1.0, random_state=0)
mine = slice(rank, None, size)

# %%
# The fit, with the same parameters on every process.

model = ConvexBNRegressor(alpha=0.01, random_state=0)
with row_shards():
    model.fit(X[mine], y[mine])

# %%
# Scores are of the rows that a process has. Their mean needs a sum over processes of one's own.

scores = [None] * size
dist.all_gather_object(scores, model.score(X[mine], y[mine]))
if rank == 0:
    print(f"{size} processes, {model.n_neurons_} hidden units: {model.certificate_}")
    print(f"R2 {np.mean(scores):.3f}, on the processes {np.round(scores, 3)}")
dist.destroy_process_group()

# sphinx_gallery_thumbnail_path = 'images/row_shards.png'
