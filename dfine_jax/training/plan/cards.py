"""Graphics cards that programs can be compiled for without one, and the facts that the compiler asks for.

Sources: for A100 and H100 the specifications that come with XLA (xla/backends/gpu/target_config/specs: a100_sxm_40,
a100_sxm_80, h100_sxm), for the others what CUDA's ``deviceQuery`` prints on such cards (cores, clocks, caches, memory)
and, for shared memory and threads, XLA's specifications of cards of the same capability (a6000) and CUDA's tables of
compute capabilities. Memory is what the driver reports, less than the name of the card says; drivers differ by up to
1 %, and the least that was seen is taken.
"""

from __future__ import annotations

from typing import NamedTuple

from dfine_jax.errors import UserError


class Card(NamedTuple):
    """Facts of a card."""

    title: str  # NVIDIA's
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    fpus_per_core: int
    clock_ghz: float
    memory_bytes: int
    bandwidth_bytes_s: int
    l2_bytes: int
    shared_per_core_bytes: int
    shared_per_block_bytes: int  # when asked for
    threads_per_core: int


CARDS = {
    "t4": Card("T4, 16 GB", (7, 5), 40, 64, 1.59, 15_655_829_504, 320 * 10**9, 4 << 20, 64 << 10, 64 << 10, 1024),
    "rtx3090": Card(
        "RTX 3090, 24 GB", (8, 6), 82, 128, 1.695, 25_286_672_384, 936 * 10**9, 6 << 20, 100 << 10, 99 << 10, 1536
    ),
    "rtx4090": Card(
        "RTX 4090, 24 GB", (8, 9), 128, 128, 2.52, 25_250_627_584, 1008 * 10**9, 72 << 20, 100 << 10, 99 << 10, 1536
    ),
    "a100": Card(
        "A100, 40 GB", (8, 0), 108, 64, 1.41, 42_331_013_120, 1555 * 10**9, 40 << 20, 164 << 10, 163 << 10, 2048
    ),
    "a100-80": Card(
        "A100, 80 GB", (8, 0), 108, 64, 1.41, 85_100_068_864, 2039 * 10**9, 40 << 20, 164 << 10, 163 << 10, 2048
    ),
    "h100": Card(
        "H100, 80 GB", (9, 0), 132, 128, 1.98, 84_942_979_072, 3352 * 10**9, 50 << 20, 228 << 10, 227 << 10, 2048
    ),
}


def find_card(name: str) -> Card:
    """A card by its short name.

    Raises:
      UserError: it is not in the table.
    """
    if name.lower() not in CARDS:
        raise UserError(f"card {name!r} is not known; there are {', '.join(CARDS)}")
    return CARDS[name.lower()]


def target_text(card: Card) -> str:
    """The card as XLA's compiler reads it (GpuTargetConfigProto in text form)."""
    major, minor = card.capability
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {card.shared_per_core_bytes}
  threads_per_core_limit: {card.threads_per_core}
  core_count: {card.cores}
  fpus_per_core: {card.fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {card.bandwidth_bytes_s}
  l2_cache_size: {card.l2_bytes}
  clock_rate_ghz: {card.clock_ghz}
  device_memory_size: {card.memory_bytes}
  shared_memory_per_block_optin: {card.shared_per_block_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "NVIDIA {card.title}"
"""
