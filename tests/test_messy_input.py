"""Data as they come: objects, frames, dates, gaps, sparse and masked arrays; others' modes.

What can be read as finite numbers gives the network of these numbers. The rest is refused before
work, by a message that names what is wrong, and leaves the estimator as it was.
"""

import datetime
import pickle
from decimal import Decimal
from fractions import Fraction

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch
from scipy import sparse
from sklearn.metrics import mean_squared_error
from sklearn.neural_network import MLPClassifier, MLPRegressor

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    ConvexBNTransformer,
    alpha_max,
    certify,
    convexbn_path,
    replace_head,
)

RNG = np.random.RandomState(0)
N = 12
X = RNG.randn(N, 3)
Y = np.round(X[:, 0] + 0.3 * RNG.randn(N), 3)
LABELS = np.where(np.median(Y) < Y, "yes", "no")
NAMES = ["a", "b", "c"]
DAYS = pd.date_range("2020-01-01", periods=N)
SETTINGS = {"tol": 0.1, "random_state": 0}


def regressor(**settings):
    return ConvexBNRegressor(0.3, **SETTINGS, **settings)


def classifier(**settings):
    return ConvexBNClassifier(0.1, **SETTINGS, **settings)


def with_entry(values, row, entry, dtype=object):
    """Return a copy of values of a dtype with another entry in a row."""
    changed = np.array(values, dtype=dtype)
    changed[row] = entry
    return changed


#: What takes a target of numbers, and what a target of labels.
OF_NUMBERS = {
    "fit": lambda y, w=None: regressor().fit(X, y, w),
    "cv": lambda y, w=None: ConvexBNRegressorCV([0.3], cv=2, **SETTINGS).fit(X, y, w),
    "path": lambda y, w=None: convexbn_path(
        X, y, alphas=[0.3], loss="squared_error", sample_weight=w, **SETTINGS
    ),
    "alpha_max": lambda y, w=None: alpha_max(X, y, loss="squared_error", sample_weight=w),
    "certify": lambda y, w=None: certify(
        regressor().fit(X, Y), X, y, alpha=0.3, sample_weight=w, effort=10
    ),
    "transformer": lambda y, w=None: ConvexBNTransformer(regressor()).fit(X, y, w),
    "head": lambda y, w=None: replace_head(
        torch.nn.Identity(), X, y, estimator=regressor(), sample_weight=w
    ),
}
OF_LABELS = {
    "fit": lambda y: classifier().fit(X, y),
    "cv": lambda y: ConvexBNClassifierCV([0.1], cv=2, **SETTINGS).fit(X, y),
    "path": lambda y: convexbn_path(X, y, alphas=[0.1], loss="log_loss", **SETTINGS),
    "alpha_max": lambda y: alpha_max(X, y),
    "certify": lambda y: certify(classifier().fit(X, LABELS), X, y, alpha=0.1, effort=10),
}

# --- targets and weights that are no finite numbers -----------------------------------------

TEXTS = [str(v) for v in Y]
BAD_NUMBERS = {
    "None in objects": (with_entry(Y, 3, None), "contains NaN: 1 of 12 .* row 3, is None"),
    "None in a list": ([*Y[:-1], None], "contains NaN: 1 of 12 .* row 11"),
    "NaN in objects": (with_entry(Y, 3, np.nan), "contains NaN.* row 3, is nan"),
    "NA in objects": (with_entry(Y, 3, pd.NA), "contains NaN.* row 3, is <NA>"),
    "inf in objects": (with_entry(Y, 3, np.inf), "contains infinity"),
    "NaN in floats": (with_entry(Y, 3, np.nan, float), "contains NaN"),
    "inf in floats": (with_entry(Y, 3, -np.inf, float), "contains infinity"),
    "text inf": (with_entry(TEXTS, 3, "inf"), "contains infinity.*'inf' .*row 3"),
    "text nan": ([*TEXTS[:-1], "nan"], "contains NaN.*'nan' .*row 11"),
    "text": (with_entry(TEXTS, 3, "z"), "'z' .*row 3 .*could not convert"),
    "texts": (["z"] * N, "'z' .*row 0 .*could not convert"),
    "pandas objects": (pd.Series(with_entry(Y, 3, None)), "contains NaN.* row 3"),
    "pandas Int64": (pd.Series([1, None] * 6, dtype="Int64"), "contains NaN"),
    "pandas Float64": (pd.Series([1.5, None] * 6, dtype="Float64"), "contains NaN"),
    "pandas boolean": (pd.Series([True, None] * 6, dtype="boolean"), "contains NaN"),
    "pandas string": (pd.Series(["1", None] * 6, dtype="string"), "contains NaN"),
    "pandas category": (pd.Series(["1", None] * 6, dtype="category"), "contains NaN"),
    "pandas dates": (pd.Series(DAYS), "holds datetime64"),
    "pandas zoned dates": (pd.Series(DAYS.tz_localize("UTC")), "Timestamp"),
    "pandas durations": (pd.Series(DAYS - DAYS[0]), "holds timedelta64"),
    "polars floats": (pl.Series([1.5, None] * 6), "contains NaN"),
    "polars booleans": (pl.Series([True, None] * 6), "contains NaN.* row 1"),
    "polars objects": (pl.Series(with_entry(Y, 3, None).tolist(), dtype=pl.Object), "NaN"),
    "polars decimals": (pl.Series([Decimal("1.5"), None] * 6), "contains NaN.* row 1"),
    "polars texts": (pl.Series([*TEXTS[:-1], "inf"]), "contains infinity"),
    "polars dates": (pl.Series([d.date() for d in DAYS]), "holds datetime64"),
    "dates": (np.arange(N).astype("M8[D]"), r"holds datetime64\[D\]"),
    "objects, date": (with_entry(Y, 3, np.datetime64("2020")), "dates or durations"),
    "objects of dates": ([datetime.date(2020, 1, 1)] * N, "not numeric: datetime.date"),
    "sparse": (sparse.csr_array(Y[:, None]), "Sparse data was passed for"),
    "sparse matrix": (sparse.coo_matrix(Y[:, None]), "Sparse data was passed for"),
    "masked": (np.ma.masked_greater(Y, 0.5), "entries of the masked array"),
    "complex objects": (with_entry(Y, 3, 1j), "not numeric: 1j"),
    "complex": (Y + 1j, "Complex data"),
    "too large an int": (with_entry(Y, 3, 10**400), "too large"),
    "decimal NaN": (with_entry(Y, 3, Decimal("nan")), "contains NaN"),
    "list of lists": ([[1.0]] * 11 + [[1.0, 2.0]], "differ in shape"),
    "dictionaries": ([{"a": 1.0}] * N, "not numeric"),
}


@pytest.mark.parametrize("taker", ["fit", "cv", "path", "certify"])
@pytest.mark.parametrize("kind", BAD_NUMBERS)
def test_targets_that_are_no_finite_numbers_are_refused(taker, kind):
    y, message = BAD_NUMBERS[kind]
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        OF_NUMBERS[taker](y)


@pytest.mark.parametrize("taker", ["alpha_max", "transformer", "head"])
@pytest.mark.parametrize("kind", ["None in objects", "text inf", "sparse", "dates"])
def test_every_way_in_refuses_the_same(taker, kind):
    y, message = BAD_NUMBERS[kind]
    with pytest.raises((ValueError, TypeError), match=message):
        OF_NUMBERS[taker](y)


@pytest.mark.parametrize("taker", OF_NUMBERS)
@pytest.mark.parametrize(
    "kind", ["None in objects", "NA in objects", "text inf", "text", "sparse", "dates", "masked"]
)
def test_weights_that_are_no_finite_numbers_are_refused(taker, kind):
    weights, message = BAD_NUMBERS[kind]
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        OF_NUMBERS[taker](Y, weights)
    assert "sample_weight" in str(raised.value)


def test_several_outputs_are_checked_in_each():
    y = np.column_stack([Y, with_entry(Y, 5, None)])
    with pytest.raises(ValueError, match=r"1 of 24 .* row 5"):
        regressor().fit(X, y)
    frame = pd.DataFrame({"u": Y, "day": DAYS})
    with pytest.raises(ValueError, match=r"y has columns of dates .*'day' of dtype datetime64"):
        regressor().fit(X, frame)


@pytest.mark.parametrize("taker", OF_LABELS)
@pytest.mark.parametrize(
    ("y", "message"),
    [
        (with_entry(LABELS, 3, None), "contains NaN: 1 of 12 .* row 3"),
        ([*LABELS[:-1], None], "contains NaN"),
        ([*LABELS[:-1].tolist(), np.nan], "contains NaN.* row 11"),
        (with_entry(LABELS, 3, np.nan), "contains NaN"),
        (pd.Series(with_entry(LABELS, 3, pd.NA), dtype="string"), "contains NaN"),
        (pd.Categorical([*LABELS[:-1], None]), "contains NaN"),
        (pl.Series([*LABELS[:-1].tolist(), None]), "contains NaN"),
        (pl.Series([True, None] * 6), "contains NaN"),
        (sparse.csr_array(np.arange(N)[:, None] % 2), "Sparse data was passed for y"),
        (np.array([1, "a"] * 6, dtype=object), "holds objects of type int, str|y is not numeric"),
        (np.array(["NaT", "2020"] * 6, dtype="M8[D]"), "contains NaN"),
        (np.ma.masked_equal(np.arange(N) % 2, 1), "masked"),
    ],
    ids=str,
)
def test_labels_that_are_missing_or_mixed_are_refused(taker, y, message):
    with pytest.raises((ValueError, TypeError), match=message):
        OF_LABELS[taker](y)


@pytest.mark.parametrize("taker", [OF_NUMBERS["path"], OF_LABELS["alpha_max"], OF_NUMBERS["fit"]])
def test_no_target(taker):
    with pytest.raises(ValueError, match=r"y is None|requires y"):
        taker(None)


# --- targets that can be read ---------------------------------------------------------------


@pytest.mark.parametrize(
    "read",
    [
        TEXTS,
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        Y.astype(object),
        [Decimal(text) for text in TEXTS],
        [Fraction(text) for text in TEXTS],
        np.array(Y, dtype=np.longdouble),
        pd.Series(Y.astype(object)),
        pd.Series(Y, dtype="Float64"),
        pl.Series(TEXTS),
        pl.Series(Y),
        pl.Series([Decimal(text) for text in TEXTS]),
        torch.tensor(Y, requires_grad=True),
        np.ma.array(Y),
    ],
    ids=lambda y: f"{type(y).__name__} {getattr(y, 'dtype', type(y[0]).__name__)}",
)
def test_numbers_in_any_container_give_the_same_network(read):
    expected = regressor().fit(X, Y).predict(X)
    np.testing.assert_allclose(regressor().fit(X, read).predict(X), expected, rtol=1e-9)
    assert OF_NUMBERS["alpha_max"](read) == pytest.approx(OF_NUMBERS["alpha_max"](Y), rel=1e-9)


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (LABELS.astype(object), ["no", "yes"]),
        (pd.Series(LABELS), ["no", "yes"]),
        (pd.Series(LABELS, dtype="string"), ["no", "yes"]),
        (pd.Categorical(LABELS), ["no", "yes"]),
        (pl.Series(LABELS.tolist(), dtype=pl.Categorical), ["no", "yes"]),
        (pd.Series(LABELS == "yes", dtype="boolean"), [False, True]),
        ((LABELS == "yes").astype(object), [False, True]),
        ((1 * (LABELS == "yes")).astype(object), [0, 1]),
        (pd.Series(1 * (LABELS == "yes"), dtype="Int64"), [0, 1]),
        (pd.Series(1.0 * (LABELS == "yes"), dtype=object), [0.0, 1.0]),
    ],
    ids=str,
)
def test_labels_in_any_container_are_the_classes(y, classes):
    model = classifier().fit(X, y)
    assert model.classes_.tolist() == classes
    expected = classifier().fit(X, LABELS).predict(X) == "yes"
    np.testing.assert_array_equal(model.predict(X) == classes[1], expected)


def test_integers_kept_as_objects_are_labels_where_y_decides_the_loss():
    y = np.arange(N) % 2
    assert alpha_max(X, y.astype(object)) == alpha_max(X, y)


# --- rows -----------------------------------------------------------------------------------


def frame(**columns):
    return pd.DataFrame({"a": X[:, 0], **columns})


BAD_ROWS = {
    "texts": (frame(s=["z"] * N), "'s' of dtype (object|str): 'z' .*row 0"),
    "one text": (frame(s=with_entry(TEXTS, 11, "z")), "'s' of dtype (object|str): 'z' .*row 11"),
    "one None": (frame(s=with_entry(Y, 11, None)), "'s' of dtype object: None in row 11"),
    "text inf": (frame(s=with_entry(TEXTS, 2, "inf")), "'s' of dtype (object|str): 'inf' .*row 2"),
    "NA": (frame(s=pd.array([1, None] * 6, dtype="Int64")), "'s' of dtype Int64|contains NaN"),
    "category": (frame(s=pd.Categorical(["u", "v"] * 6)), "'s' of dtype category: 'u'"),
    "category, null": (pd.DataFrame({"s": pd.Categorical(["1", None] * 6)}), "'s' .*missing"),
    "dates": (frame(day=DAYS), "dates or durations: 'day' of dtype datetime64"),
    "zoned dates": (frame(day=DAYS.tz_localize("UTC")), "'day' of dtype datetime64.*UTC"),
    "durations": (frame(time=DAYS - DAYS[0]), "'time' of dtype timedelta64"),
    "periods": (frame(month=DAYS.to_period("M")), "'month' of dtype period"),
    "only dates": (pd.DataFrame({"day": DAYS}), "'day' of dtype datetime64"),
    "repeated names": (pd.DataFrame(X, columns=["a", "b", "a"]), "more than once: 'a'"),
    "repeated numbers": (pd.DataFrame(X, columns=[0, 1, 1]), "more than once: 1"),
    "lists": (frame(s=[[1, 2]] * N), r"'s' of dtype object: \[1, 2\]"),
    "polars texts": (pl.DataFrame({"a": Y, "s": ["z"] * N}), "'s' of dtype String: 'z'"),
    "polars booleans": (pl.DataFrame({"s": [True, None] * 6, "t": [True] * N}), "'s' of .*Boolean"),
    "polars decimals": (pl.DataFrame({"s": [Decimal("1.5"), None] * 6}), "'s' of dtype Decimal"),
    "polars dates": (pl.DataFrame({"a": Y, "day": DAYS.to_numpy()}), "'day' of dtype Datetime"),
    "polars lists": (pl.DataFrame({"a": Y, "s": [[1, 2]] * N}), "'s' of dtype List"),
    "polars lazy": (pl.DataFrame({"a": Y}).lazy(), r"LazyFrame.*X\.collect\(\)"),
    "dictionary": ({"a": Y}, "X is a dict"),
    "date array": (DAYS.to_numpy()[:, None], "X holds datetime64"),
    "duration array": (np.arange(N)[:, None].astype("m8[s]"), r"X holds timedelta64\[s\]"),
    "objects": (with_entry(X, (4, 1), "z"), "1 of dtype object: 'z' .*row 4"),
    "objects, None": (with_entry(X, (4, 1), None), "1 of dtype object: None in row 4"),
    "objects, inf": (with_entry(X, (4, 1), np.inf), "1 of dtype object: inf .*row 4|infinity"),
    "objects, date": (with_entry(X, (4, 1), np.datetime64("2020")), "dates or durations"),
    "list with None": ([[1.0, None]] * N, "1 of dtype object: None in row 0"),
    "large integers": ([[1, 10**400]] * N, "1 of dtype object: .*int too large"),
    "complex objects": (with_entry(X, (4, 1), 1j), "1 of dtype object: 1j"),
    "long doubles": (X * np.longdouble("1e400"), "infinity or a value too large"),
    "masked": (np.ma.masked_greater(X, 1.0), "entries of the masked array"),
    "ragged": ([[1.0, 2.0]] * 11 + [[1.0]], "rows differ in length"),
    "images": (np.zeros((N, 2, 2)), r"image_shape, here \(2, 2\)"),
    "list of images": ([np.zeros((2, 2))] * N, r"image_shape, here \(2, 2\)"),
    "series": (pd.Series(Y), "2-dimensional container|2D array"),
    "text": ("a file", "2D array"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_rows_that_are_no_finite_numbers_are_refused(kind):
    rows, message = BAD_ROWS[kind]
    model = regressor()
    with pytest.raises(ValueError, match=f"(?s){message}"):
        model.fit(rows, Y)
    assert not hasattr(model, "n_features_in_")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        alpha_max(rows, Y)


@pytest.mark.parametrize(
    ("train", "rows", "words"),
    [
        (pl.DataFrame({"s": [True, False] * 6}), pl.DataFrame({"s": [True, None]}), "Boolean"),
        (pd.DataFrame({"s": Y}), pd.DataFrame({"s": pd.Categorical(["1", None])}), "category"),
        (pd.DataFrame({"s": Y}), pd.DataFrame({"s": ["1", "inf"]}), "'s'.*'inf' .*row 1"),
        (pd.DataFrame({"s": Y}), pd.DataFrame({"s": DAYS}), "'s' of dtype datetime64"),
        (Y[:, None], [[1.0], [None]], "0 of dtype object: None in row 1"),
        (Y[:, None], np.ma.masked_array([[1.0], [2.0]], [[0], [1]]), "1 entries of the masked"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function", "transform"])
def test_rows_are_checked_again_at_prediction(train, rows, words, method):
    model = ConvexBNTransformer(regressor()) if method == "transform" else classifier()
    model.fit(train, np.arange(N) // 6 if method == "transform" else LABELS)
    with pytest.raises(ValueError, match=words):
        getattr(model, method)(rows)


@pytest.mark.parametrize(
    "read",
    [
        X.astype(object),
        X.tolist(),
        X.astype(np.longdouble),
        pd.DataFrame(X.astype(str)),
        pd.DataFrame(X).astype("Float64"),
        pl.DataFrame(X),
        pl.DataFrame(X.astype(str)),
        torch.tensor(X, requires_grad=True),
        np.ma.array(X),
        sparse.csr_array(X),
        sparse.dok_array(X),
        sparse.lil_matrix(X),
    ],
    ids=lambda rows: f"{type(rows).__name__} {getattr(rows, 'dtype', '')}",
)
def test_rows_in_any_container_give_the_same_network(read):
    expected = regressor().fit(X, Y)
    model = regressor().fit(read, Y)
    np.testing.assert_allclose(model.predict(read), expected.predict(X), rtol=1e-9)


def test_read_only_frames_and_bfloat16_tensors_are_read():
    rows = torch.tensor(X).to(torch.bfloat16)
    expected = regressor().fit(rows.double().numpy(), Y).predict(rows.double().numpy())
    np.testing.assert_allclose(regressor().fit(rows, Y).predict(rows), expected, rtol=1e-9)
    locked = X.copy()
    locked.flags.writeable = False
    assert np.isfinite(regressor(solver="pursuit").fit(locked, Y).predict(locked)).all()


def test_a_refused_fit_leaves_the_estimator_as_it_was():
    model = regressor().fit(pd.DataFrame(X, columns=NAMES), Y)
    before = pickle.dumps(model)
    for rows, y in [(BAD_ROWS["dates"][0], Y), (X, BAD_NUMBERS["None in objects"][0])]:
        with pytest.raises(ValueError, match=r"dates|NaN"):
            model.fit(rows, y)
        assert pickle.dumps(model) == before


# --- certify --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [
        regressor(),
        ConvexBNRegressorCV([0.3], cv=2, **SETTINGS),
        MLPRegressor(hidden_layer_sizes=(3,), tol=10.0, random_state=0),
    ],
    ids=lambda network: type(network).__name__,
)
def test_certify_checks_the_names_of_features(network):
    rows = pd.DataFrame(X, columns=NAMES)
    network.fit(rows, Y)
    assert certify(network, rows, Y, alpha=0.3, effort=10).gap >= 0.0
    with pytest.raises(ValueError, match="feature names should match"):
        certify(network, rows[["c", "a", "b"]], Y, alpha=0.3)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        certify(network, X, Y, alpha=0.3, effort=10)
    with pytest.raises(ValueError, match=r"feature names should|X has 2 features"):
        certify(network, rows[["a", "b"]], Y, alpha=0.3)


def test_certify_refuses_outputs_that_are_not_the_predictions():
    network = MLPRegressor(loss="poisson", hidden_layer_sizes=(3,), tol=10.0, random_state=0)
    network.fit(X, Y**2)
    with pytest.raises(ValueError, match="loss='poisson', whose predictions are the exponentials"):
        certify(network, X, Y**2, alpha=0.3)
    labels = MLPClassifier(hidden_layer_sizes=(3,), tol=10.0, random_state=0).fit(X, LABELS)
    assert certify(labels, X, LABELS, alpha=0.1, effort=10).gap > 0.0


@pytest.mark.parametrize("kind", [ConvexBNRegressor, MLPRegressor])
def test_certify_names_a_class_that_is_passed_for_an_instance(kind):
    with pytest.raises(TypeError, match=f"Got the class {kind.__name__}"):
        certify(kind, X, Y, alpha=0.3)
    with pytest.raises(TypeError, match=f"Got the class {kind.__name__}"):
        ConvexBNTransformer(kind).fit(X, Y)


# --- cross-validation -----------------------------------------------------------------------

WEIGHTS = np.arange(1.0, N + 1)


@pytest.mark.parametrize("request_fit", [False, True])
def test_weights_reach_the_scores_with_metadata_routing(request_fit):
    def searched(kind, y, **settings):
        model = kind([0.3, 0.1], cv=2, **SETTINGS, **settings)
        if request_fit and sklearn.get_config()["enable_metadata_routing"]:
            model.set_fit_request(sample_weight=True)
        return model.fit(X, y, sample_weight=WEIGHTS)

    plain = searched(ConvexBNRegressorCV, Y)
    labels = searched(ConvexBNClassifierCV, LABELS)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = searched(ConvexBNRegressorCV, Y)
        in_parallel = searched(ConvexBNRegressorCV, Y, n_jobs=2)
        routed_labels = searched(ConvexBNClassifierCV, LABELS)
    np.testing.assert_array_equal(routed.mse_path_, plain.mse_path_)
    np.testing.assert_array_equal(in_parallel.mse_path_, plain.mse_path_)
    np.testing.assert_array_equal(routed_labels.scores_, labels.scores_)
    unweighted = ConvexBNRegressorCV([0.3, 0.1], cv=2, **SETTINGS).fit(X, Y)
    assert (plain.mse_path_ != unweighted.mse_path_).all()


def test_scores_are_weighted_means():
    halves = [(np.arange(6), np.arange(6, N))]
    model = ConvexBNRegressorCV([0.3], cv=halves, **SETTINGS).fit(X, Y, sample_weight=WEIGHTS)
    fold = regressor().fit(X[:6], Y[:6], WEIGHTS[:6])
    expected = mean_squared_error(Y[6:], fold.predict(X[6:]), sample_weight=WEIGHTS[6:])
    assert model.mse_path_[0, 0, 0] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "weights",
    [WEIGHTS.tolist(), WEIGHTS.astype(object), pd.Series(WEIGHTS), pl.Series(WEIGHTS), 2.0],
    ids=lambda weights: type(weights).__name__,
)
def test_weights_in_any_container(weights):
    model = ConvexBNRegressorCV([0.3], cv=2, **SETTINGS).fit(X, Y, sample_weight=weights)
    array = np.broadcast_to(weights, N).astype(float)
    expected = ConvexBNRegressorCV([0.3], cv=2, **SETTINGS).fit(X, Y, sample_weight=array)
    np.testing.assert_array_equal(model.mse_path_, expected.mse_path_)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cv": [([0, 1, 2], [30])]}, "Fold 0 of cv has no indices of the 12 rows: index 30"),
        ({"cv": [([0.0, 1.0], [2.0])]}, "Fold 0 of cv has no indices"),
        ({"cv": 50}, "n_splits=50"),
        ({"alphas": ["a"]}, "alphas is not numeric: 'a'"),
        ({"alphas": [0.1, None]}, "Input alphas contains NaN"),
    ],
)
def test_grids_and_folds_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        ConvexBNRegressorCV(**{"alphas": [0.3], "cv": 2, **SETTINGS, **settings}).fit(X, Y)


def test_folds_may_be_masks():
    masks = ConvexBNRegressorCV([0.3], cv=[(X[:, 1] > 0, X[:, 1] <= 0)], **SETTINGS).fit(X, Y)
    indices = [(np.flatnonzero(X[:, 1] > 0), np.flatnonzero(X[:, 1] <= 0))]
    expected = ConvexBNRegressorCV([0.3], cv=indices, **SETTINGS).fit(X, Y)
    np.testing.assert_array_equal(masks.mse_path_, expected.mse_path_)


@pytest.mark.parametrize("weight", ["z", None, np.nan, -1.0, [1.0]])
def test_class_weights_that_are_no_weights(weight):
    with pytest.raises(ValueError, match="class_weight must be"):
        classifier(class_weight={"no": 1.0, "yes": weight}).fit(X, LABELS)


# --- torch ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode,
        lambda: torch.device("meta"),
        lambda: np.errstate(all="raise"),
    ],
    ids=["autocast", "inference", "default device", "errstate"],
)
def test_modes_of_torch_and_numpy_leave_a_fit_alone(mode):
    rows = np.random.RandomState(1).randn(60, 4)
    y = np.abs(rows[:, 0]) + rows[:, 1]

    def results():
        model = ConvexBNRegressor(0.05, solver="pursuit", random_state=0).fit(rows, y)
        judged = certify(model, rows, y, alpha=0.05, effort=50, random_state=0)
        largest = alpha_max(rows, y, random_state=0)
        _, networks, _ = convexbn_path(rows, y, alphas=[0.1], random_state=0)
        return [model.objective_, judged.dual, largest, networks[0].forward(rows).sum()]

    expected = results()
    with mode():
        assert results() == expected


def test_heads_do_not_depend_on_autocast():
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
    expected, _ = replace_head(body, X, Y, estimator=regressor())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network, _ = replace_head(body, X, Y, estimator=regressor())
    assert network[1].weight.dtype == torch.float32
    torch.testing.assert_close(network(torch.tensor(X).float()), expected(torch.tensor(X).float()))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (with_entry(X, (2, 0), None), "Input X contains NaN"),
        (with_entry(X, (2, 0), np.nan, float), "NaN or infinity for 1 of 12 rows; X contains"),
        (X.astype(object) + 1j, "not numeric"),
        (sparse.csr_array(X), "Sparse data was passed for X"),
        (with_entry(X, (2, 0), "z"), "'z' .*row 2"),
    ],
    ids=str,
)
def test_rows_of_heads(rows, message):
    with pytest.raises((ValueError, TypeError), match=message):
        replace_head(torch.nn.Identity(), rows, Y, estimator=regressor())


def test_memory_mapped_models_are_exported_and_read_tensors(tmp_path):
    model = regressor().fit(X, Y)
    joblib.dump(model, tmp_path / "model.joblib")
    mapped = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    assert not mapped.coefs_[0].flags.writeable
    for fold in (False, True):
        module = mapped.to_torch(fold=fold)
        outputs = module(torch.tensor(X)).detach().numpy()[:, 0]
        np.testing.assert_allclose(outputs, model.predict(X), rtol=1e-9)
        with torch.no_grad():
            module[0].weight.zero_()  # its own memory
    np.testing.assert_array_equal(mapped.coefs_[0], model.coefs_[0])
