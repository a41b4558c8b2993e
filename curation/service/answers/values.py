"""Values that JSON can represent."""

import math
from typing import Any

import numpy as np

PLAIN = frozenset({str, int, bool, type(None)})


def json_value(value: Any) -> Any:
    """Make a value fit for JSON: NaN and infinities become null, NumPy scalars plain numbers."""
    kind = type(value)
    if kind in PLAIN:  # most values: looked up, not tried one type after the other
        return value
    if kind is dict:
        return {
            key: item if type(item) in PLAIN else json_value(item) for key, item in value.items()
        }
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, np.generic):
        return json_value(value.item())
    return value
