"""The families of detectors by name: the only room that knows them."""

from __future__ import annotations
