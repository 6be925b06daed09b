"""Split the rows of a job over processes that do not talk to each other."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of `count`, counted from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard | None:
    """Read I/N; None when it is not that.

    I may count from 0, as Kubernetes does, or from 1, as SLURM arrays often do: N/N is the same part as 0/N.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    if match is None or int(match[2]) < 1 or int(match[1]) > int(match[2]):
        return None
    return Shard(int(match[1]) % int(match[2]), int(match[2]))


def is_in_shard(row_id: str, shard: Shard) -> bool:
    """Whether a row belongs to a part, by its id alone: the same on every machine, whatever the other rows are."""
    digest = hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % shard.count == shard.index
