"""Noise as a pure function of (seed, image id, restart, purpose, step, pixel).

Nothing else can change it.

SplitMix64 (Steele, Lea, Flood 2014) used as a counter-based generator:

    mix(z)  = the 64-bit finalizer,
    key'    = mix((key ^ value) + gamma)    absorbs one value into a key,
    bits(i) = mix(key + (i + 1) * gamma)    is the i-th draw of a stream.

Integer arithmetic only, so CPU and GPU agree on every bit; batch size, shard, worker and order do
not enter.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_C1 = 0xBF58476D1CE4E5B9
_C2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Reinterpret 64 unsigned bits as the int64 that torch stores."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift(z: Tensor, bits: int) -> Tensor:
    # >> on int64 copies the sign; the mask makes it a logical shift
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(_C1)
    z = (z ^ _shift(z, 27)) * _signed(_C2)
    return z ^ _shift(z, 31)


def _absorb(key: Tensor, value: int | Tensor) -> Tensor:
    return _mix((key ^ value) + _signed(_GAMMA))


def purpose_code(purpose: str) -> int:
    """Turn the name of a draw into a signed 64-bit number."""
    return _signed(int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little"))


@dataclass(frozen=True)
class Randomness:
    """Carry one independent random stream per image.

    seed: any int; image_ids: (N,) int64 stable ids; restart: int, or (N,) int64 where slots differ.
    """

    seed: int
    image_ids: Tensor
    restart: int | Tensor = 0

    @classmethod
    def of(
        cls, seed: int, image_ids: Sequence[int] | Tensor, restart: int | Tensor = 0
    ) -> "Randomness":
        """Build from any sequence of ids."""
        return cls(seed, torch.as_tensor(image_ids, dtype=torch.int64), restart)

    def take(self, slots: Tensor) -> "Randomness":
        """Keep the streams at the given positions, in that order."""
        restart = self.restart[slots] if isinstance(self.restart, Tensor) else self.restart
        return Randomness(self.seed, self.image_ids[slots], restart)

    def put(self, slots: Tensor, other: "Randomness", rows: Tensor) -> "Randomness":
        """Return streams whose `slots` are the `rows` of `other`."""
        ids = self.image_ids.index_copy(0, slots, other.image_ids[rows])
        own, new = (torch.zeros_like(one.image_ids) + one.restart for one in (self, other))
        return Randomness(self.seed, ids, own.index_copy(0, slots, new[rows]))

    def further(self, restarts: int | Tensor) -> "Randomness":
        """Return the same images with the streams of so many restarts later."""
        return Randomness(self.seed, self.image_ids, self.restart + restarts)

    def with_restart(self, restart: int) -> "Randomness":
        """Return the same images with the streams of another restart."""
        return Randomness(self.seed, self.image_ids, restart)

    def draw(
        self,
        purpose: str,
        count: int,
        *,
        step: int | Tensor = 0,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return (N, count) int64 of uniform bits; step: int, or (N,) where images differ."""
        device = device or self.image_ids.device
        ids = self.image_ids.to(device)
        # the seed is mixed alone first: mix(seed ^ id) would give image 1 of seed 0 the stream of
        # image 0 of seed 1
        key = _absorb(_mix(torch.full_like(ids, _signed(self.seed + _GAMMA))), ids)
        # a number stays a number: as a tensor it would be copied to a GPU, and waited for
        for value in (self.restart, purpose_code(purpose), step):
            key = _absorb(
                key,
                value.to(device, torch.int64) if isinstance(value, Tensor) else _signed(int(value)),
            )
        counter = torch.arange(1, count + 1, dtype=torch.int64, device=device) * _signed(_GAMMA)
        return _mix(key[:, None] + counter[None, :])

    def uniform(
        self,
        purpose: str,
        shape: Sequence[int],
        *,
        step: int | Tensor = 0,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return (N, *shape) float32, uniform on the multiples of 2**-24 in [0, 1)."""
        bits = self.draw(purpose, math.prod(shape), step=step, device=device)
        return (_shift(bits, 40).to(torch.float32) * 2.0**-24).view(-1, *shape)

    def below(
        self,
        bound: int | Tensor,
        purpose: str,
        count: int,
        *,
        step: int | Tensor = 0,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return (N, count) int64 in [0, bound), uniform to 1 in 2**31.

        bound: at most 2**31, or a tensor that broadcasts to (N, count).
        """
        return (_shift(self.draw(purpose, count, step=step, device=device), 33) * bound) >> 31

    def normal(
        self,
        purpose: str,
        shape: Sequence[int],
        *,
        step: int | Tensor = 0,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return (N, *shape) float32 standard normals.

        They come from Box-Muller in float64, one pair of uniforms each.
        """
        count = math.prod(shape)
        bits = (
            _shift(self.draw(purpose, 2 * count, step=step, device=device), 11).to(torch.float64)
            * 2.0**-53
        )
        radius = torch.sqrt(-2.0 * torch.log1p(-bits[:, :count]))
        return (
            (radius * torch.cos(2.0 * math.pi * bits[:, count:])).to(torch.float32).view(-1, *shape)
        )


def permutation(count: int, *, seed: int, epoch: int) -> Tensor:
    """Return an order of range(count), (count,) int64, new in every epoch.

    It is a pure function of (seed, epoch).
    """
    keys = Randomness.of(seed, torch.arange(count)).draw("order", 1, step=epoch)[:, 0]
    return torch.argsort(keys, stable=True)


def sample_rows(rng: Randomness, count: int, *, purpose: str) -> Tensor:
    """Return at most `count` positions of the streams of `rng`, ascending, (M,) int64.

    They are those of the smallest keys, for any order of the streams.
    """
    return random_order(rng, purpose=purpose)[:count].sort().values


def random_order(rng: Randomness, *, purpose: str) -> Tensor:
    """Return the positions of the streams of `rng` by ascending keys, (N,) int64."""
    return torch.argsort(rng.draw(purpose, 1)[:, 0], stable=True)


def coin(
    rng: Randomness,
    *,
    probability: float,
    purpose: str,
    step: int | Tensor = 0,
    device: torch.device | None = None,
) -> Tensor:
    """Toss one coin per image, (N,) bool, heads with the given probability in [0, 1]."""
    return rng.uniform(purpose, (1,), step=step, device=device).flatten() < probability
