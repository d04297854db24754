"""agnosco shows what an image classifier has learned to recognise as each of its classes."""

from .data.samples import Samples
from .errors import AgnoscoError, AgnoscoWarning
from .method.concept import ConceptMap
from .method.config import PRESETS, Config, MapperConfig, RefineConfig, preset
from .method.dials import L2, AutoL2, Crops, Data, Identity, Pixel, Sparse, Spectral
from .method.maker import map_class, map_classes
from .models.classifier import Classifier
from .models.loading import load
from .runs.run import Run, remake
from .types import Progress, Step

__version__ = "0.1.0"

__all__ = [
    "L2",
    "PRESETS",
    "AgnoscoError",
    "AgnoscoWarning",
    "AutoL2",
    "Classifier",
    "ConceptMap",
    "Config",
    "Crops",
    "Data",
    "Identity",
    "MapperConfig",
    "Pixel",
    "Progress",
    "RefineConfig",
    "Run",
    "Samples",
    "Sparse",
    "Spectral",
    "Step",
    "load",
    "map_class",
    "map_classes",
    "preset",
    "remake",
]
