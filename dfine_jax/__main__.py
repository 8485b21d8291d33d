"""``python -m dfine_jax`` is the ``dfine`` command."""

from __future__ import annotations

import sys

from dfine_jax.cli import main

sys.exit(main())
