"""The progress bar of calls that take many prompts. Leaf module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(total: int, shown: bool, text: str = "Processed prompts") -> Iterator[Callable[[], object]]:
    """Show a bar on stderr, or nothing; gives the function to call for each prompt that is done."""
    if not shown:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=text, unit="prompt", dynamic_ncols=True) as bar:
        yield bar.update
