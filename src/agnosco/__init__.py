"""agnosco shows what an image classifier has learned to recognise as each of its classes."""

from .ball import L2, AutoL2, Sparse
from .classifier import Classifier
from .concept import ConceptMap
from .coordinates import Data, Pixel, Spectral
from .cycle import PRESETS, Config, Progress, map_class, map_classes, preset
from .errors import AgnoscoError, AgnoscoWarning
from .mapper import MapperConfig, Step
from .refine import RefineConfig
from .samples import Samples
from .store import Run, remake
from .views import AsIs, Crops
from .zoo import load

__version__ = "0.1.0"

__all__ = [
    "L2",
    "PRESETS",
    "AgnoscoError",
    "AgnoscoWarning",
    "AsIs",
    "AutoL2",
    "Classifier",
    "ConceptMap",
    "Config",
    "Crops",
    "Data",
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
