"""What takes long is said, what is over in a moment is not."""

from __future__ import annotations

import logging
import time

import pytest

from dfine_jax.system import waiting


def test_only_long_waits_are_told(monkeypatch, caplog):
    monkeypatch.setattr(waiting, "_MOMENT_S", 0.05)
    with caplog.at_level(logging.INFO):
        with waiting.waiting("a moment", "said to nobody"):
            pass
        assert not caplog.messages
        with waiting.waiting("compiling", "about a minute"):
            time.sleep(0.3)
        assert caplog.messages == ["compiling ... (about a minute)", "compiling: done in 0 s"]
        caplog.clear()
        with pytest.raises(ValueError), waiting.waiting("failing"):
            time.sleep(0.3)
            raise ValueError
    assert caplog.messages == ["failing ..."]
