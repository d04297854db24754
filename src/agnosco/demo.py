"""The demo: a small network learns real handwritten digits, and its ten classes are pictured.

Everything is at hand offline: the digits are scikit-learn's (1797 of 8×8 pixels, Alpaydin and Kaynak,
UCI 1998). The network is trained so that it looks at whole digits: parts of them are erased, noise is
laid over them, and every image is moved against it a little (Goodfellow et al., ICLR 2015). What such a
network recognises, people read.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .ball import L2
from .classifier import Classifier
from .console import Output
from .cycle import Config
from .errors import AgnoscoError
from .mapper import MapperConfig
from .samples import Samples
from .store import HELD_OUT, SHEET, SPLIT_SEED, Run
from .views import Crops

SIDE = 32
DIGIT = 24
"""Pixels that a digit is enlarged to, in the middle of an image of ``SIDE``."""

EPOCHS, BATCH, RATE = 20, 64, 5e-3
SEEN = Crops(area=(0.6, 1.0), flip=False, noise=0.3)
HOLE = 8
AGAINST = 0.75
ENOUGH = 0.97

CONFIG = Config(
    MapperConfig(
        batch=16,
        steps=60,
        step=0.1,
        decay=1.0,
        direction="plus",
        clip="masked",
        contrast=(0.0, 1.0),
        coordinates=Data(),
        views=SEEN,
        ball=L2(97.0),
    ),
    refine=None,
    cycles=1,
)
