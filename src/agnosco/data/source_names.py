"""What sets of samples are called in manifests."""

from __future__ import annotations

import re

DIGITS = "scikit-learn digits"


def plain_source(source: str) -> str:
    """The source that was asked for: without the number of images, the seed, and the number of files."""
    return re.sub(r"-\d+-seed0$| \([\d,]+ of [\d,]+ files\)$", "", source)
