"""D-FINE on CrowdHuman, one class.

| | N | S | M | L | X |
|---|---|---|---|---|---|
| lr | 8e-4 | 4e-4 | 2.5e-4 | 2.5e-4 | 2.5e-4 |
| backbone lr | 4e-4 | 2e-4 | 2.5e-5 | 1.25e-5 | 2.5e-6 |
| weight decay | 1e-4 | 1e-4 | 1.25e-4 | 1.25e-4 | 1.25e-4 |
| batch | 128 | 64 | 32 | 32 | 32 |
| epochs, stage 2 from | 220, 200 | 220, 200 | 220, 200 | 140, 120 | 140, 120 |
| weight of 640 among the sizes | one size | 20 | 6 | 4 | 3 |
| published AP | - | - | - | 56.0 | - |

Crowded images have hundreds of people: the slots for objects, and with them the denoising queries, follow the fullest
image; the first lines of the log say how many there are. DEIM's paper gives L as 56.0 / 87.2 / 59.4 (AP, AP50, AP75)
after 120 epochs.

    dfine train experiments/dfine_crowdhuman.py:l --data crowdhuman --out runs/crowd --backbone imagenet
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.dfine.tables import published


def get_config(variant: str = "l") -> Config:
    """The recipe for a variant: ``n``, ``s``, ``m``, ``l``, ``x``."""
    return published("dfine_crowdhuman", variant)
