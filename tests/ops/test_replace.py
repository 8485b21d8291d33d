"""Functions that may be replaced while they are traced."""

from __future__ import annotations

import pytest

from dfine_jax.nn import layers
from dfine_jax.ops.replace import replaceable, replaced


def test_a_marked_function_is_replaced_inside_the_block_only():
    @replaceable
    def one() -> int:
        return 1

    with replaced({one: lambda: 2}):
        assert one() == 2
    assert one() == 1


def test_a_function_that_would_be_called_as_it_is():
    with pytest.raises(ValueError, match="not replaceable: called"), replaced({layers.called: lambda *_: None}):
        pass
