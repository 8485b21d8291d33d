"""D-FINE-seg on data of one's own: boxes and masks, as the package dfine-seg 0.6.2 trains them by default.

Muon for the matrices of attention and feed-forward layers, Adan for the rest (AdamW for the backbones of L and X), one
cycle of the rate, mosaics in every second image but in the last 5 of 55 epochs. ``optim.optimizer=adamw`` is the
package's other recipe: all by AdamW, at the rates that belong to it.
``dfine train s --task segment --method dfine-seg`` starts from this table and fits it to the data; with
``--task detect`` there are more mosaics.

In the package the backbone's rate counts for L and X alone, and N, S and M train the backbone at the rate of the rest;
here it counts for all. The package fills the memory with the batch; 8 is what it had before, and what its rates are for
here. The class count of 777 is a placeholder.

    dfine train experiments/dfineseg_custom.py:s --data mine --out runs/mine --weights dfine-s-coco
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.dfine.tables import published


def get_config(variant: str = "s") -> Config:
    """The recipe for a variant: ``n``, ``s``, ``m``, ``l``, ``x``."""
    return published("dfineseg_custom", variant)
