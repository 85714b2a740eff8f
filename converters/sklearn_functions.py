"""Estimators that change each column by itself, and constants."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn import dummy, feature_selection, impute, isotonic, preprocessing

from converters.errors import ConversionError
from converters.sklearn_expressions import Expression, concat, label_of, where
from onnx_serve.tensors import Array

__all__ = ["FORMULAS", "apply_function", "interpolate", "invert", "is_missing"]

# NumPy's functions of one array, by what they are in a graph.
_FUNCTIONS: Mapping[Any, Callable[[Expression], Expression]] = {
    np.abs: lambda x: x.call("Abs"),
    np.ceil: lambda x: x.call("Ceil"),
    np.cos: lambda x: x.call("Cos"),
    np.exp: lambda x: x.call("Exp"),
    np.exp2: lambda x: (x * float(np.log(2.0))).call("Exp"),
    np.expm1: lambda x: x.call("Exp") - 1.0,
    np.floor: lambda x: x.call("Floor"),
    np.log: lambda x: x.call("Log"),
    np.log10: lambda x: x.call("Log") / float(np.log(10.0)),
    np.log1p: lambda x: (x + 1.0).call("Log"),
    np.log2: lambda x: x.call("Log") / float(np.log(2.0)),
    np.negative: lambda x: -x,
    np.positive: lambda x: x,
    np.reciprocal: lambda x: x.call("Reciprocal"),
    np.rint: lambda x: x.call("Round"),
    np.sign: lambda x: where(x.call("IsNaN"), x, x.call("Sign")),
    np.sin: lambda x: x.call("Sin"),
    np.sqrt: lambda x: x.call("Sqrt"),
    np.square: lambda x: x * x,
    np.tanh: lambda x: x.call("Tanh"),
}


def apply_function(function: Any, x: Expression, where_from: str) -> Expression:
    """A function of NumPy's, element by element; None is none.

    Raises:
        ConversionError: It is another one.
    """
    if function is None:
        return x
    try:
        found = _FUNCTIONS.get(function)
    except TypeError:  # a callable that cannot be hashed
        found = None
    if found is None:
        names = ", ".join(f"np.{known.__name__}" for known in _FUNCTIONS)
        raise ConversionError(
            f"{where_from}: the function {getattr(function, '__name__', type(function).__name__)} has no converter; "
            f"those that have one are {names}"
        )
    return found(x)


def _function(model: Any, x: Expression) -> list[Expression]:
    if model.kw_args:
        raise ConversionError("FunctionTransformer: kw_args have no converter")
    return [apply_function(model.func, x, "FunctionTransformer")]


# --- Powers -----------------------------------------------------------------------------------------


def _power(model: Any, x: Expression) -> list[Expression]:
    """``PowerTransformer``; a missing value stays missing."""
    change = _box_cox if model.method == "box-cox" else _yeo_johnson
    made = change(x, np.asarray(model.lambdas_, np.float64))
    return [(made - _means(model)) / _scales(model) if model.standardize else made]


def _means(model: Any) -> Array:
    return np.asarray(model._scaler.mean_)  # noqa: SLF001  no public form


def _scales(model: Any) -> Array:
    return np.asarray(model._scaler.scale_)  # noqa: SLF001


def _box_cox(x: Expression, lambdas: Array) -> Expression:
    zero = lambdas == 0
    safe = np.where(zero, 1.0, lambdas)
    return _pick(zero, x.call("Log"), (x**safe - 1.0) / safe)


def _yeo_johnson(x: Expression, lambdas: Array) -> Expression:
    zero, two = lambdas == 0, lambdas == 2  # noqa: PLR2004  where the formula's limit is a logarithm
    low, high = np.where(zero, 1.0, lambdas), np.where(two, 1.0, 2.0 - lambdas)
    above = where(x >= 0.0, x, 0.0) + 1.0
    below = -where(x >= 0.0, 0.0, x) + 1.0
    up = _pick(zero, above.call("Log"), (above**low - 1.0) / low)
    down = _pick(two, -below.call("Log"), -(below**high - 1.0) / high)
    return where(x >= 0.0, up, down)


def _pick(columns: Array, yes: Expression, no: Expression) -> Expression:
    """One matrix's columns where ``columns`` says so, else the other's."""
    if not columns.any():
        return no
    return where(yes.named(yes.graph.constant(columns[None, :], np.bool_)), yes, no)


def _unpower(model: Any, y: Expression) -> Expression:
    lambdas = np.asarray(model.lambdas_, np.float64)
    if model.standardize:
        y = y * _scales(model) + _means(model)
    zero = lambdas == 0
    safe = np.where(zero, 1.0, lambdas)
    if model.method == "box-cox":
        return _pick(zero, y.call("Exp"), (y * safe + 1.0) ** (1.0 / safe))
    two = lambdas == 2  # noqa: PLR2004  as above
    high = np.where(two, 1.0, 2.0 - lambdas)
    above, below = where(y >= 0.0, y, 0.0), where(y >= 0.0, 0.0, y)
    up = _pick(zero, above.call("Exp") - 1.0, (above * safe + 1.0) ** (1.0 / safe) - 1.0)
    down = _pick(two, -(-below).call("Exp") + 1.0, -((below * -high + 1.0) ** (1.0 / high)) + 1.0)
    return where(y >= 0.0, up, down)


# --- Back from a transformed target ---------------------------------------------------------------------

_SCALERS = (
    preprocessing.StandardScaler, preprocessing.MinMaxScaler, preprocessing.MaxAbsScaler, preprocessing.RobustScaler,
)  # fmt: skip


def invert(transformer: Any, y: Expression) -> Expression:
    """What ``inverse_transform`` of a fitted transformer makes of a matrix.

    Raises:
        ConversionError: Its inverse has no converter.
    """
    kind = type(transformer).__name__
    steps = getattr(transformer, "steps", None)
    if steps is not None:
        for _, step in reversed(steps):
            y = y if step in {None, "passthrough"} else invert(step, y)
        return y
    if isinstance(transformer, preprocessing.FunctionTransformer):
        if transformer.inv_kw_args:
            raise ConversionError(f"{kind}: inv_kw_args have no converter")
        return apply_function(transformer.inverse_func, y, f"{kind}, inverse_func")
    if isinstance(transformer, preprocessing.PowerTransformer):
        return _unpower(transformer, y)
    if isinstance(transformer, _SCALERS):
        if getattr(transformer, "clip", False):
            raise ConversionError(f"{kind}: the inverse of clip=True has no converter")
        count = transformer.n_features_in_
        offset: Array = np.asarray(transformer.inverse_transform(np.zeros((1, count))))
        slope: Array = np.asarray(transformer.inverse_transform(np.ones((1, count)))) - offset
        return y * slope + offset
    raise ConversionError(
        f"{kind}: its inverse has no converter; those that have one are the scalers, PowerTransformer and "
        "FunctionTransformer"
    )


# --- Missing values, selections, curves ------------------------------------------------------------------


def _indicator(model: Any, x: Expression) -> list[Expression]:
    return [is_missing(model.missing_values, x).numbers().columns(model.features_)]


def is_missing(value: Any, x: Expression) -> Expression:
    """Where a number stands for a missing one: NaN, or one that the user chose."""
    return x.call("IsNaN") if np.isnan(value) else x.call("Equal", float(value))


def _selection(model: Any, x: Expression) -> list[Expression]:
    return [x.columns(np.flatnonzero(model.get_support()))]


def _isotonic(model: Any, x: Expression) -> list[Expression]:
    return [interpolate(model, x.reshape(-1, 1))]


def interpolate(model: Any, x: Expression) -> Expression:
    """``IsotonicRegression`` of a column [N, 1]: straight lines between the thresholds that fitting found.

    Raises:
        ConversionError: It should raise an error beyond them.
    """
    if model.out_of_bounds == "raise":
        raise ConversionError(
            'IsotonicRegression: out_of_bounds="raise" has no converter, "clip" and "nan" have'
        )
    knots = np.asarray(model.X_thresholds_, np.float64)
    values = np.asarray(model.y_thresholds_, np.float64)
    if len(knots) == 1:
        return x.rows(values)
    clipped = x.call("Max", knots[0]).call("Min", knots[-1])
    steps: Array = np.diff(knots)
    rises: Array = np.diff(values)
    # How far each line has been walked, as a share of its length.
    shares = ((clipped - knots[:-1]) / steps).call("Max", 0.0).call("Min", 1.0)
    made = (shares * rises).total() + float(values[0])
    if model.out_of_bounds == "clip":
        return made
    inside = (x >= knots[0]).call("And", x <= knots[-1])
    return where(inside, made, np.nan)


def _splines(model: Any, x: Expression) -> list[Expression]:
    """``SplineTransformer``, by the recursion of Cox and de Boor."""
    if model.extrapolation not in {"constant", "periodic"}:
        raise ConversionError(
            f"SplineTransformer: extrapolation={model.extrapolation!r} has no converter, 'constant' and 'periodic' have"
        )
    if getattr(model, "handle_missing", "error") != "error":
        raise ConversionError("SplineTransformer: handle_missing has no converter")
    parts = [_basis(model, spline, x.columns([i])) for i, spline in enumerate(model.bsplines_)]
    return [concat(parts)]


def _basis(model: Any, spline: Any, x: Expression) -> Expression:
    knots, degree = np.asarray(spline.t, np.float64), int(spline.k)
    first, last, given = knots[degree], knots[-degree - 1], x
    if model.extrapolation == "periodic":
        turns = ((x - first) / float(last - first)).call("Floor")
        x = x - turns * float(last - first)
    else:
        x = x.call("Max", first).call("Min", last)
    # The last interval that is used has its end too, and the knots beyond it have nothing.
    starts, ends = knots[:-1].copy(), knots[1:].copy()
    top = int(np.flatnonzero((starts < last) & (ends >= last))[-1])
    ends[top] = np.inf
    starts[top + 1 :] = np.inf
    basis = (x >= starts).call("And", x < ends).numbers()
    for order in range(1, degree + 1):
        left, right = knots[order:-1] - knots[: -order - 1], knots[order + 1 :] - knots[1:-order]
        count = len(knots) - order - 1
        rise = (x - knots[:count]) * _inverse(left)
        fall = (-x + knots[order + 1 :]) * _inverse(right)
        basis = rise * basis.columns(range(count)) + fall * basis.columns(range(1, count + 1))
    values = basis @ np.asarray(spline.c, np.float64)
    if model.extrapolation == "constant":
        # Beyond the knots only the outermost splines keep what they have at the end.
        places = np.arange(spline.c.shape[1])
        below: Array = np.where(places < degree, spline(first), 0.0)
        above: Array = np.where(places >= len(places) - degree, spline(last), 0.0)
        values = where(given < float(first), below[None], where(given > float(last), above[None], values))
    return values if model.include_bias else values.columns(range(spline.c.shape[1] - 1))


def _inverse(lengths: Array) -> Array:
    """1 / lengths, and 0 for knots that coincide."""
    return np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)


# --- Steps and lengths ------------------------------------------------------------------------------


def _bins(model: Any, x: Expression) -> list[Expression]:
    """``KBinsDiscretizer``: how many inner edges a value has reached; skl2onnx compares in float32."""
    parts = []
    for column, (edges, count) in enumerate(zip(model.bin_edges_, model.n_bins_, strict=True)):
        value = x.columns([column])
        inner = edges[1:-1][None, :]
        reached = (value >= inner).numbers().total() if inner.size else value * 0.0
        if model.encode != "ordinal":
            reached = reached.call("Equal", np.arange(float(count))[None, :]).numbers()
        parts.append(reached)
    return [concat(parts)]


def _binarized(model: Any, x: Expression) -> list[Expression]:
    """``Binarizer``; skl2onnx compares in float32."""
    return [(x > float(model.threshold)).numbers()]


def _normalized(model: Any, x: Expression) -> list[Expression]:
    """``Normalizer``; a row of zeros stays as it is."""
    sizes = x.call("Abs")
    lengths = {
        "l1": sizes.total,
        "l2": lambda: (x * x).total().call("Sqrt"),
        "max": sizes.greatest,
    }[model.norm]()
    return [x / where(lengths > 0.0, lengths, 1.0)]


# --- Constants --------------------------------------------------------------------------------------


def _constant_class(model: Any, x: Expression) -> list[Expression]:
    if model.n_outputs_ != 1 or model.strategy in {"stratified", "uniform"}:
        raise ConversionError(
            "DummyClassifier: several labels, and answers drawn at random, have no converter"
        )
    [shares] = model.predict_proba(np.zeros((1, 1)))
    [label] = model.predict(np.zeros((1, 1)))
    # The greatest of these tells the label, which "prior" and a constant need not share with the shares.
    chosen = x.rows((model.classes_ == label).astype(np.float64))
    return [label_of(model.classes_, chosen.highest()), x.rows(shares)]


def _constant_value(model: Any, x: Expression) -> list[Expression]:
    return [x.rows(np.asarray(model.constant_, np.float64).reshape(-1))]


FORMULAS = {
    preprocessing.FunctionTransformer: _function,
    preprocessing.PowerTransformer: _power,
    preprocessing.SplineTransformer: _splines,
    preprocessing.KBinsDiscretizer: _bins,
    preprocessing.Binarizer: _binarized,
    preprocessing.Normalizer: _normalized,
    impute.MissingIndicator: _indicator,
    feature_selection.SequentialFeatureSelector: _selection,
    isotonic.IsotonicRegression: _isotonic,
    dummy.DummyClassifier: _constant_class,
    dummy.DummyRegressor: _constant_value,
}
