"""
A table with mixed columns and missing values
=============================================

The estimators take numbers without gaps, as most of scikit-learn's do. A
:class:`~sklearn.compose.ColumnTransformer` brings a table with categories and missing values into
that form, and a grid search over the whole pipeline tunes the network. The table is made
up, so that the picture at the end can be held against the truth.
"""

# %%
# The table
# ---------
#
# Rents of flats. The rent depends on the area, on the year of construction (old and new flats are
# dearer than those in between), on the district and on the heating. The floor plays no part. Some
# areas, years and heatings are missing.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklearn_convexbn import ConvexBNRegressor

rng = np.random.default_rng(0)
n = 450
flats = pd.DataFrame(
    {
        "area": rng.gamma(9, 8, n).round(),
        "year": rng.integers(1900, 2021, n).astype(float),
        "floor": rng.integers(0, 7, n).astype(float),
        "district": rng.choice(["centre", "north", "river", "station"], n),
        "heating": rng.choice(["gas", "district", "pump"], n),
    }
)
by_district = flats["district"].map({"centre": 4.0, "north": 0.0, "river": 2.0, "station": 1.0})
by_heating = flats["heating"].map({"gas": 0.0, "district": 0.5, "pump": 1.0})
per_square_metre = 9 + 0.05 * (flats["year"] - 1965).abs() + by_district + by_heating
rent = flats["area"] * per_square_metre + 150 + rng.normal(0, 40, n)
for column in ("area", "year", "heating"):
    flats.loc[rng.random(n) < 0.05, column] = np.nan
print(flats.head().to_string())
print(f"missing values: {flats.isna().sum().to_dict()}")

# %%
# The pipeline
# ------------
#
# Numbers are imputed by the median and scaled, categories turned into indicators; a missing heating
# becomes a category of its own. The scaling matters as soon as ``shrinkage`` or ``n_components`` is
# used. The search goes over the weight decay and the shrinkage.

numbers, categories = ["area", "year", "floor"], ["district", "heating"]


def preprocessing() -> ColumnTransformer:
    """Return the steps from the table to numbers."""
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
            (
                "categories",
                make_pipeline(
                    SimpleImputer(strategy="constant", fill_value="unknown"),
                    OneHotEncoder(handle_unknown="ignore", sparse_output=False),
                ),
                categories,
            ),
        ]
    )


X_train, X_test, y_train, y_test = train_test_split(flats, rent, test_size=0.4, random_state=0)
pipeline = Pipeline(
    [("columns", preprocessing()), ("network", ConvexBNRegressor(tol=0.05, random_state=0))]
)
grid = {"network__alpha": [0.01, 0.03], "network__shrinkage": [0.0, 0.5]}
search = GridSearchCV(pipeline, grid, cv=3).fit(X_train, y_train)
network = search.best_estimator_.named_steps["network"]
print(f"best parameters: {search.best_params_}")
print(f"{network.n_neurons_} hidden units on {network.n_features_in_} columns")
print(f"certificate: {network.certificate_}")

# %%
# On flats it has not seen
# ------------------------
#
# Beside a linear model on the same columns. :func:`~sklearn.inspection.permutation_importance`
# works on the columns of the table as they were, with their categories and missing values.

linear = make_pipeline(preprocessing(), RidgeCV(np.logspace(-3, 3, 13)))
linear_cv = cross_val_score(linear, X_train, y_train, cv=3).mean()
linear.fit(X_train, y_train)
print(f"{'model':20}{'cross-validated R2':>19}{'test R2':>9}")
print(f"{'ConvexBNRegressor':20}{search.best_score_:19.3f}{search.score(X_test, y_test):9.3f}")
print(f"{'RidgeCV':20}{linear_cv:19.3f}{linear.score(X_test, y_test):9.3f}")

importances = {
    name: permutation_importance(model, X_test, y_test, n_repeats=20, random_state=0)
    for name, model in (("ConvexBNRegressor", search), ("RidgeCV", linear))
}
print(f"\n{'drop of R2 when shuffled':26}" + "".join(f"{name:>19}" for name in importances))
for i, column in enumerate(flats.columns):
    drops = "".join(f"{result.importances_mean[i]:19.3f}" for result in importances.values())
    print(f"{column:26}{drops}")

# %%
# On the left, predicted against true rents. In the middle, how much the score drops when one column
# is shuffled. On the right, what the year alone does to the prediction, averaged over the test
# flats, beside its effect in the formula that made the data; both are shifted to a mean of zero. A
# linear model can only draw a straight line there.

years = np.linspace(1900, 2020, 25)


def effect_of_year(model: Pipeline | GridSearchCV) -> np.ndarray:
    """Return the mean prediction with the year of all test flats set to each of `years`."""
    effect = np.array([model.predict(X_test.assign(year=year)).mean() for year in years])
    return effect - effect.mean()


truth = 0.05 * np.abs(years - 1965) * flats["area"].mean()
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.5, 4), layout="constrained")
limits = [rent.min(), rent.max()]
left.plot(limits, limits, color="0.7")
left.plot(y_test, search.predict(X_test), "o", ms=4, alpha=0.6, color="C0")
left.set(xlabel="true rent", ylabel="predicted rent", title="Test flats, ConvexBNRegressor")
places = np.arange(len(flats.columns))
for i, (name, result) in enumerate(importances.items()):
    middle.barh(
        places - 0.2 + 0.4 * i,
        result.importances_mean,
        height=0.38,
        xerr=result.importances_std,
        color=f"C{i}",
        label=name,
    )
middle.set(yticks=places, yticklabels=flats.columns, xlabel="drop of R2", title="Column shuffled")
middle.invert_yaxis()
middle.legend(loc="lower right")
right.plot(years, truth - truth.mean(), color="black", ls="--", label="formula, mean area")
right.plot(years, effect_of_year(search), color="C0", label="ConvexBNRegressor")
right.plot(years, effect_of_year(linear), color="C1", label="RidgeCV")
right.set(xlabel="year of construction", ylabel="change of rent", title="Effect of the year")
right.legend()
plt.show()
