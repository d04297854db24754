"""agnosco shows what an image classifier has learned to recognise as each of its classes.

Public names are imported when they are first used (`PEP 562 <https://peps.python.org/pep-0562/>`_), so that
``import agnosco`` and ``agnosco --help`` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; a test holds these, _MODULES and __all__ together
    from .backdoor.config import ScanConfig
    from .backdoor.scan import scan
    from .data.samples import Samples
    from .errors import AgnoscoError, AgnoscoWarning
    from .evaluate.diff import diff
    from .evaluate.facets import facets
    from .evaluate.sanity import sanity
    from .evaluate.transfer import score
    from .method.concept import ConceptMap
    from .method.config import PRESETS, Config, MapperConfig, RefineConfig, preset
    from .method.dials import L2, AutoL2, Crops, Data, Identity, Pixel, Sparse, Spectral
    from .method.maker import map_class, map_classes, map_objective
    from .models.classifier import Classifier
    from .models.inspection import inspect
    from .models.loading import load
    from .reports.card import card
    from .reports.check import check
    from .reports.page import report
    from .runs.jobs import map_runs
    from .runs.origin import remake
    from .runs.run import Run
    from .types import Progress, Step

__version__ = "0.1.0"

_MODULES = {
    "backdoor.config": ("ScanConfig",),
    "backdoor.scan": ("scan",),
    "data.samples": ("Samples",),
    "errors": ("AgnoscoError", "AgnoscoWarning"),
    "evaluate.diff": ("diff",),
    "evaluate.facets": ("facets",),
    "evaluate.sanity": ("sanity",),
    "evaluate.transfer": ("score",),
    "method.concept": ("ConceptMap",),
    "method.config": ("PRESETS", "Config", "MapperConfig", "RefineConfig", "preset"),
    "method.dials": ("L2", "AutoL2", "Crops", "Data", "Identity", "Pixel", "Sparse", "Spectral"),
    "method.maker": ("map_class", "map_classes", "map_objective"),
    "models.classifier": ("Classifier",),
    "models.inspection": ("inspect",),
    "models.loading": ("load",),
    "reports.card": ("card",),
    "reports.check": ("check",),
    "reports.page": ("report",),
    "runs.jobs": ("map_runs",),
    "runs.origin": ("remake",),
    "runs.run": ("Run",),
    "types": ("Progress", "Step"),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}

__all__ = [
    "L2", "PRESETS", "AgnoscoError", "AgnoscoWarning", "AutoL2", "Classifier", "ConceptMap", "Config", "Crops", "Data",
    "Identity", "MapperConfig", "Pixel", "Progress", "RefineConfig", "Run", "Samples", "ScanConfig", "Sparse",
    "Spectral", "Step", "card", "check", "diff", "facets", "inspect", "load", "map_class", "map_classes",
    "map_objective", "map_runs", "preset", "remake", "report", "sanity", "scan", "score",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
