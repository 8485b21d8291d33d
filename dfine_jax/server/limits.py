"""What a server takes, and for how long."""

from __future__ import annotations

import dataclasses
import math

from dfine_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of requests; more is refused with a status of 4xx, or 503 where it is too much only now.

    Raises:
      UserError: one of them is not positive.
    """

    body_mb: float = 20.0  # of 10^6 bytes, as sent
    megapixels: float = 50.0  # of a picture
    pictures: int = 16  # of a request
    requests: int = 64  # at a time: being received, waiting or in the network
    seconds: float = 30.0  # from the headers of a request to its answer

    def __post_init__(self) -> None:
        """Check them."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"limit {field.name}={value:g} must be positive")

    @property
    def body_bytes(self) -> int:
        """As whole bytes."""
        return int(self.body_mb * 1e6)
