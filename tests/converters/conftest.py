"""What holds for the tests of the converters."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Estimators without a ``random_state`` draw from numpy's global generator: a test must not depend on luck."""
    np.random.seed(0)  # noqa: NPY002  it is the one that scikit-learn uses
