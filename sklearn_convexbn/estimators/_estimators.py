"""The scikit-learn estimators: parameters, validation, prediction; no mathematics."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin

from sklearn_convexbn import solvers
from sklearn_convexbn.data._patches import Patches
from sklearn_convexbn.estimators._base import BaseConvexBN
from sklearn_convexbn.estimators._targets import LabelsMixin, NumbersMixin
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.support._compat import with_callbacks


class ConvexBNRegressor(RegressorMixin, NumbersMixin, BaseConvexBN):
    """Batch-normalized two-layer ReLU network for regression, trained in convex form.

    Minimises, over the weights w_j, the BN scales and shifts gamma_j and beta_j and the
    output weights v_j of the network
    ``f(x) = sum_j v_j relu(gamma_j (x - mean) w_j / std(X w_j) + beta_j) + b``, ::

        mean(1/2 |f(x_i) - y_i|^2) + weight_decay_/2 * sum_j (gamma_j^2 + beta_j^2 + |v_j|^2)

    through its convex form, so that there is no learning rate and the distance from the
    global optimum is bounded [1]_, rigorously or by an estimate: `certificate_` says which.
    Read more in the :doc:`user guide </user_guide>`.

    Parameters
    ----------
    alpha : float or "auto", default="auto"
        Weight decay on BN scales, BN shifts and output weights, relative to a mean loss on a
        target of unit variance; it has no unit. Must be positive. "auto" begins at
        ``0.009 / n^(1/4)`` for a total weight n of the rows and, with the pursuit of dense
        networks, doubles up to four times where networks begin to fit noise: by their loss on
        rows that early rounds leave out, or below 1000 rows by generalized cross-validation (for
        "poisson" Akaike's criterion). `alpha_` is what it came to. `alpha` is what to tune first.

    n_components : int, float or None, default=None
        Number of leading singular directions of X that are kept, or, in (0, 1), the share of
        variance to keep. None keeps all. Keeping fewer is the explicit form of the bias of
        gradient descent towards large directions: tune it.

    shrinkage : float, "eps" or "auto", default="eps"
        Damp small directions instead of cutting them: whiten with the covariance shrunk
        towards its diagonal (with `patches` towards the mean variance of their values). With a
        shrinkage s the std(X w_j) above is the root of
        ``(1 - s) var(X w_j) + s sum_i w_ij^2 var(X_i)``: 0 is batch normalization without its
        eps, 1 no more than scaled columns, and the units of columns do not matter. "eps" is 0.01,
        or 0 where distinct rows are linearly independent in the directions kept, so that closed
        forms are exact. "auto" is the Ledoit-Wolf estimate.

    clip : bool, default=False
        Whether to limit the whitened coordinates of new rows to the range that they have on the
        training rows of positive weight, as :class:`~sklearn.preprocessing.MinMaxScaler` does
        with its `clip`: predictions far from the data are then bounded, and those of training
        rows are as without. Not with `patches`.

    activation : {"relu", "gated_relu"}, default="relu"
        "gated_relu" fixes the on/off pattern of each unit by `n_gates` random gates, which
        makes the program a group lasso.

    patches : Patches or None, default=None
        Cut rows, which are images then, into patches that every hidden unit sees: a convolutional
        network, as :class:`Patches` says. None is the dense network.

    solver : {"auto", "closed_form", "pursuit", "group_newton", "interior_point", "fista", \
            "cvxpy"} or Solver, default="auto"
        "auto" takes for "relu" a closed form where one is proven to hold, else the pursuit; for
        "gated_relu" the Newton method with one output, FISTA with several outputs or pooled
        patches. The parameters of an instance are reached as ``solver__x``.

    n_gates : int or "all", default=256
        Number of arrangements to sample where the program needs a fixed list ("gated_relu";
        "relu" with solver "interior_point" or "cvxpy"). "all" enumerates them, if they are few.

    fit_intercept : bool, default=True
        Whether to fit the (not penalised) output intercept. Without it the target is not
        centred.

    tol : float, default=0.2
        The fit stops when the relative duality gap ``(primal - dual) / primal`` is at most
        `tol`. It means the same for every solver. Smaller gaps make better optima and seldom
        better predictions. Where the gap is an estimate, an independent search verifies it before
        the fit stops.

    max_iter : int, default=200
        Largest number of rounds of the solver. Where the pursuit of a dense network begins on
        parts of 1000 and more rows, or raises `alpha`, rounds there count.

    device : str or None, default=None
        Where solvers that use torch compute: None or "cpu", "cuda", "cuda:1", or "auto" for
        CUDA where there is one.

    warm_start : bool, default=False
        Whether to start from the previous fit's network.

    random_state : int, RandomState instance or None, default=None
        Seeds gates and searches. Pass an int for identical results across calls.

    verbose : int, default=0
        Print one line a round when positive.

    loss : {"squared_error", "huber", "poisson", "quantile"} or Loss, default="squared_error"
        A name, or an instance of a loss in ``sklearn_convexbn.losses``, whose parameters are
        reached as ``loss__x``. "poisson" is for counts: predictions are the exponential of the
        network's output, and y is not rescaled. `score` is R^2 whatever the loss.

    Attributes
    ----------
    coefs_ : list of two ndarrays of shapes (n_features, n_neurons) and (n_neurons, n_outputs)
        Weights with batch normalization folded in, as in
        :class:`~sklearn.neural_network.MLPRegressor`: the prediction is
        ``relu(X @ coefs_[0] + intercepts_[0]) @ coefs_[1] + intercepts_[1]``.
    intercepts_ : list of two ndarrays of shapes (n_neurons,) and (n_outputs,)
        Offsets of the hidden units and of the outputs.
    batch_norm_ : dict of ndarrays of shape (n_neurons,)
        "mean", "var", "scale" and "shift" of each hidden unit's batch normalization.
    gates_ : ndarray of shape (n_features + 1, n_neurons)
        Only with gated_relu: a unit is on where ``x @ gates_[:-1] + gates_[-1] >= 0``.
    n_neurons_ : int
        Number of hidden units.
    certificate_ : Certificate
        primal, dual, gap, infeasibility, kind ("exact" when rigorous, "estimated" when the
        maximum over arrangements came from a search) and program (the optimum it is about).
        Values are in squared units of y, for a quantile in those of y, for Poisson without any.
    objective_ : float
        Objective of the fitted network, ``certificate_.primal``.
    dual_gap_ : float
        Relative duality gap, ``certificate_.gap``.
    n_iter_ : int
        Rounds run with the last `alpha_` on all rows.
    history_ : dict of ndarrays of shape (`n_iter_`,)
        "objective", "dual_gap", "n_neurons", "time" (seconds since the fit began) and "kind" after
        each of these rounds. The kind of its bound is "exact", or of an estimate "verified" or
        "stopping".
    solver_ : Solver
        The solver used.
    n_components_ : int
        Number of directions kept.
    singular_values_ : ndarray of shape (rank,)
        All singular values of the centred X (weighted), decreasing.
    explained_variance_ratio_ : ndarray of shape (rank,)
        Share of the variance along each direction.
    patches_ : dict
        Only with `patches`: "image_shape", "patch_shape", "stride", "pool_shape" and
        "pool_stride" of the grid of patches and of its pooling, and "contrast", what is added to
        the variance of a patch, None where patches are not normalized. Then `coefs_` are of
        shapes (n_inputs, n_neurons), for the values of a patch, and
        (n_neurons * n_cells, n_outputs), for the pooled activations, those of a unit together; X
        above is all patches.
    shrinkage_ : float
        The shrinkage used.
    damping_ : ndarray of shape (`n_components_`,)
        Standard deviation, after whitening, along each of the leading singular directions of X:
        one where nothing is shrunk.
    alpha_ : float
        The alpha used.
    weight_decay_ : float
        `alpha_` in the units of y.
    loss_ : Loss
        The loss trained with.
    whitened_range_ : ndarray of shape (2, `n_components_`)
        Only with `clip`: minimum and maximum of each whitened coordinate on the training rows.
    whitening_ : dict of ndarrays
        Only with `clip`: coordinates are ``X @ whitening_["coefs"] + whitening_["intercepts"]``,
        and once they are clipped hidden units see ``Z @ whitening_["hidden_coefs"]`` plus their
        shift in `batch_norm_`; with gated_relu a unit is on where
        ``Z @ whitening_["gates"][:-1] + whitening_["gates"][-1] >= 0``. `coefs_` and `gates_` are
        the same network without the clip.
    n_features_in_ : int
        Number of columns of X, for images of values.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Only when X has feature names that are all strings.

    See Also
    --------
    ConvexBNClassifier : The same for classification.
    sklearn.neural_network.MLPRegressor : Networks trained by gradient descent.

    References
    ----------
    .. [1] T. Ergen, A. Sahiner, B. Ozturkler, J. Pauly, M. Mardani, M. Pilanci, "Demystifying
       Batch Normalization in ReLU Networks: Equivalent Convex Optimization Models and
       Implicit Regularization", ICLR 2022, arXiv:2103.01499.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_convexbn import ConvexBNRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = ConvexBNRegressor(alpha=0.1, random_state=0).fit(X, y)
    >>> model.dual_gap_ <= 0.2
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseConvexBN._parameter_constraints,
        **NumbersMixin._parameter_constraints,
    }

    def __init__(
        self,
        alpha: float | str = "auto",
        *,
        n_components: int | float | None = None,
        shrinkage: float | str = "eps",
        clip: bool = False,
        activation: str = "relu",
        patches: Patches | None = None,
        solver: str | solvers.Solver = "auto",
        n_gates: int | str = 256,
        fit_intercept: bool = True,
        tol: float = 0.2,
        max_iter: int = 200,
        device: str | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
        loss: str | Loss = "squared_error",
    ) -> None:
        super().__init__(
            alpha,
            n_components=n_components,
            shrinkage=shrinkage,
            clip=clip,
            activation=activation,
            patches=patches,
            solver=solver,
            n_gates=n_gates,
            fit_intercept=fit_intercept,
            tol=tol,
            max_iter=max_iter,
            device=device,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.loss = loss

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the network.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            With `patches` images, (n_samples, height, width[, channels]) or flattened.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative. A weight of 2 equals the row twice, 0 equals no row.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters or data, or a solver that does not handle the problem. The
            estimator then stays as it was.
        """
        return self._fit(X, y, sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # The directions kept are those of large variance in X, whatever the target.
        tags.regressor_tags.poor_score = self.n_components is not None
        return tags


class ConvexBNClassifier(ClassifierMixin, LabelsMixin, BaseConvexBN):
    """Batch-normalized two-layer ReLU network classifier, trained in convex form.

    Minimises a mean loss plus weight decay over the network
    ``f(x) = sum_j v_j relu(gamma_j (x - mean) w_j / std(X w_j) + beta_j) + b``, ::

        mean(loss(f(x_i), y_i)) + alpha/2 * sum_j (gamma_j^2 + beta_j^2 + |v_j|^2)

    through its convex form, so that there is no learning rate and the distance from the
    global optimum is bounded [1]_, rigorously or by an estimate: `certificate_` says which.
    Read more in the :doc:`user guide </user_guide>`.

    Parameters
    ----------
    alpha : float or "auto", default="auto"
        Weight decay on BN scales, BN shifts and output weights, relative to a mean loss. Must
        be positive. "auto" begins at ``0.009 / n^(1/4)`` for a total weight n of the rows and, with
        the pursuit of dense networks, doubles up to four times where networks begin to fit noise:
        by their loss on rows that early rounds leave out, or below 1000 rows by Akaike's criterion.
        `alpha_` is what it came to. `alpha` is what to tune first.

    n_components : int, float or None, default=None
        Number of leading singular directions of X that are kept, or, in (0, 1), the share of
        variance to keep. None keeps all. Keeping fewer is the explicit form of the bias of
        gradient descent towards large directions: tune it.

    shrinkage : float, "eps" or "auto", default="eps"
        Damp small directions instead of cutting them: whiten with the covariance shrunk
        towards its diagonal (with `patches` towards the mean variance of their values). With a
        shrinkage s the std(X w_j) above is the root of
        ``(1 - s) var(X w_j) + s sum_i w_ij^2 var(X_i)``: 0 is batch normalization without its
        eps, 1 no more than scaled columns, and the units of columns do not matter. "eps" is 0.01,
        or 0 where distinct rows are linearly independent in the directions kept, so that closed
        forms are exact. "auto" is the Ledoit-Wolf estimate.

    clip : bool, default=False
        Whether to limit the whitened coordinates of new rows to the range that they have on the
        training rows of positive weight, as :class:`~sklearn.preprocessing.MinMaxScaler` does
        with its `clip`: predictions far from the data are then bounded, and those of training
        rows are as without. Not with `patches`.

    activation : {"relu", "gated_relu"}, default="relu"
        "gated_relu" fixes the on/off pattern of each unit by `n_gates` random gates, which
        makes the program a group lasso (nuclear norms for several outputs).

    patches : Patches or None, default=None
        Cut rows, which are images then, into patches that every hidden unit sees: a convolutional
        network, as :class:`Patches` says. None is the dense network.

    solver : {"auto", "closed_form", "pursuit", "group_newton", "interior_point", "fista", \
            "cvxpy"} or Solver, default="auto"
        "auto" takes for "relu" a closed form where one is proven to hold, else the pursuit; for
        "gated_relu" the Newton method with one output, FISTA with several outputs or pooled
        patches. The parameters of an instance are reached as ``solver__x``.

    n_gates : int or "all", default=256
        Number of arrangements to sample where the program needs a fixed list ("gated_relu";
        "relu" with solver "interior_point" or "cvxpy"). "all" enumerates them, if they are few.

    fit_intercept : bool, default=True
        Whether to fit the (not penalised) output intercept.

    tol : float, default=0.2
        The fit stops when the relative duality gap ``(primal - dual) / primal`` is at most
        `tol`. It means the same for every solver. Smaller gaps make better optima and seldom
        better predictions. Where the gap is an estimate, an independent search verifies it before
        the fit stops.

    max_iter : int, default=200
        Largest number of rounds of the solver. Where the pursuit of a dense network begins on
        parts of 1000 and more rows, or raises `alpha`, rounds there count.

    device : str or None, default=None
        Where solvers that use torch compute: None or "cpu", "cuda", "cuda:1", or "auto" for
        CUDA where there is one.

    warm_start : bool, default=False
        Whether to start from the previous fit's network.

    random_state : int, RandomState instance or None, default=None
        Seeds gates and searches. Pass an int for identical results across calls.

    verbose : int, default=0
        Print one line a round when positive.

    loss : {"log_loss", "squared_error"} or Loss, default="log_loss"
        "log_loss" is logistic for two classes and softmax cross-entropy for more.
        "squared_error" is taken to one-hot targets, for two classes to one target of -1 and 1.
        Or an instance of :class:`~sklearn_convexbn.losses.Loss`.

    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, multiplied with the sample weights.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels of the classes that have a sample of positive weight.
    coefs_ : list of two ndarrays of shapes (n_features, n_neurons) and (n_neurons, n_outputs)
        Weights with batch normalization folded in, as in
        :class:`~sklearn.neural_network.MLPClassifier`: the output before softmax (or sigmoid)
        is ``relu(X @ coefs_[0] + intercepts_[0]) @ coefs_[1] + intercepts_[1]``. There is one
        output for two classes and one a class for more.
    intercepts_ : list of two ndarrays of shapes (n_neurons,) and (n_outputs,)
        Offsets of the hidden units and of the outputs.
    batch_norm_ : dict of ndarrays of shape (n_neurons,)
        "mean", "var", "scale" and "shift" of each hidden unit's batch normalization.
    gates_ : ndarray of shape (n_features + 1, n_neurons)
        Only with gated_relu: a unit is on where ``x @ gates_[:-1] + gates_[-1] >= 0``.
    n_neurons_ : int
        Number of hidden units.
    certificate_ : Certificate
        primal, dual, gap, infeasibility, kind ("exact" when rigorous, "estimated" when the
        maximum over arrangements came from a search) and program (the optimum it is about).
    objective_ : float
        Objective of the fitted network, ``certificate_.primal``.
    dual_gap_ : float
        Relative duality gap, ``certificate_.gap``.
    n_iter_ : int
        Rounds run with the last `alpha_` on all rows.
    history_ : dict of ndarrays of shape (`n_iter_`,)
        "objective", "dual_gap", "n_neurons", "time" (seconds since the fit began) and "kind" after
        each of these rounds. The kind of its bound is "exact", or of an estimate "verified" or
        "stopping".
    solver_ : Solver
        The solver used.
    n_components_ : int
        Number of directions kept.
    singular_values_ : ndarray of shape (rank,)
        All singular values of the centred X (weighted), decreasing.
    explained_variance_ratio_ : ndarray of shape (rank,)
        Share of the variance along each direction.
    patches_ : dict
        Only with `patches`: "image_shape", "patch_shape", "stride", "pool_shape" and
        "pool_stride" of the grid of patches and of its pooling, and "contrast", what is added to
        the variance of a patch, None where patches are not normalized. Then `coefs_` are of
        shapes (n_inputs, n_neurons), for the values of a patch, and
        (n_neurons * n_cells, n_outputs), for the pooled activations, those of a unit together; X
        above is all patches.
    shrinkage_ : float
        The shrinkage used.
    damping_ : ndarray of shape (`n_components_`,)
        Standard deviation, after whitening, along each of the leading singular directions of X:
        one where nothing is shrunk.
    alpha_ : float
        The alpha used.
    weight_decay_ : float
        `alpha_`.
    loss_ : Loss
        The loss trained with.
    whitened_range_ : ndarray of shape (2, `n_components_`)
        Only with `clip`: minimum and maximum of each whitened coordinate on the training rows.
    whitening_ : dict of ndarrays
        Only with `clip`: coordinates are ``X @ whitening_["coefs"] + whitening_["intercepts"]``,
        and once they are clipped hidden units see ``Z @ whitening_["hidden_coefs"]`` plus their
        shift in `batch_norm_`; with gated_relu a unit is on where
        ``Z @ whitening_["gates"][:-1] + whitening_["gates"][-1] >= 0``. `coefs_` and `gates_` are
        the same network without the clip.
    n_features_in_ : int
        Number of columns of X, for images of values.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Only when X has feature names that are all strings.

    See Also
    --------
    ConvexBNRegressor : The same for regression.
    sklearn.neural_network.MLPClassifier : Networks trained by gradient descent.

    References
    ----------
    .. [1] T. Ergen, A. Sahiner, B. Ozturkler, J. Pauly, M. Mardani, M. Pilanci, "Demystifying
       Batch Normalization in ReLU Networks: Equivalent Convex Optimization Models and
       Implicit Regularization", ICLR 2022, arXiv:2103.01499.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn_convexbn import ConvexBNClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = ConvexBNClassifier(alpha=0.03, random_state=0).fit(X, y)
    >>> model.dual_gap_ <= 0.2
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseConvexBN._parameter_constraints,
        **LabelsMixin._parameter_constraints,
    }

    def __init__(
        self,
        alpha: float | str = "auto",
        *,
        n_components: int | float | None = None,
        shrinkage: float | str = "eps",
        clip: bool = False,
        activation: str = "relu",
        patches: Patches | None = None,
        solver: str | solvers.Solver = "auto",
        n_gates: int | str = 256,
        fit_intercept: bool = True,
        tol: float = 0.2,
        max_iter: int = 200,
        device: str | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
        loss: str | Loss = "log_loss",
        class_weight: dict[Any, float] | str | None = None,
    ) -> None:
        super().__init__(
            alpha,
            n_components=n_components,
            shrinkage=shrinkage,
            clip=clip,
            activation=activation,
            patches=patches,
            solver=solver,
            n_gates=n_gates,
            fit_intercept=fit_intercept,
            tol=tol,
            max_iter=max_iter,
            device=device,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.loss = loss
        self.class_weight = class_weight

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the network.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            With `patches` images, (n_samples, height, width[, channels]) or flattened.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative. A weight of 2 equals the row twice, 0 equals no row.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters or data, fewer than two classes, or a solver that does not
            handle the problem. The estimator then stays as it was.
        """
        return self._fit(X, y, sample_weight)
