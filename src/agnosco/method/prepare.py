"""A classifier made ready to be run hundreds of thousands of times: same answers, less work.

Each measure is timed in ``benchmarks/speed.py``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..models.classifier import Classifier
from .config import PRECISIONS

CAST_BY_AUTOCAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

CPU_BYTES = 128 * 2**20
"""Activations that a CPU holds at once: beyond this, its throughput grows no more."""

GPU_SHARE = 0.5
"""Of a GPU's free memory that activations may take; the rest is for what convolutions need besides."""

SAMPLES_SHARE = 0.25
"""Of a GPU's free memory that the sample set may take; a larger one stays with the host."""

MOST_IMAGES = 1024
"""Images at once at most: a device is full by then."""

ALIKE = 1e-3
"""Greatest difference of logits, as a share of the greatest logit, at which a network counts as the same."""


def resolve_precision(name: str, device: torch.device) -> str:
    """The arithmetic of a name on a device: ``auto`` is bfloat16 where the hardware has it, else float32.

    Raises:
        AgnoscoError: There is no such precision.
    """
    if name not in PRECISIONS:
        raise AgnoscoError(f"no precision {name!r}", f"choose from {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    if device.type == "cpu":
        return "bfloat16" if _cpu_has_bfloat16() else "float32"
    return "float32"


def prepared(classifier: Classifier, *, precision: str = "float32") -> Classifier:
    """The same classifier, faster; the one given is left as it is.

    Batch normalisations are folded into the convolutions before them where torch.fx can follow the network and its
    logits stay the same.

    Args:
        classifier: The network.
        precision: ``float32``, or ``bfloat16``: convolutions and products of matrices in bfloat16, logits in float32.
    """
    faster = copy.copy(classifier)
    faster.model = _folded(classifier)
    on_gpu, halved = faster.device.type == "cuda", precision == "bfloat16"
    if faster.model is classifier.model and (on_gpu or halved):
        faster.model = _copied(classifier.model)
    if faster.model is not classifier.model:
        if on_gpu:
            faster.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if halved:
            _halve_weights(faster.model)
    if halved:
        faster.model = _Autocast(faster.model)
    return faster


def compiled(classifier: Classifier, *, backend: str = "inductor") -> Classifier:
    """The same classifier through ``torch.compile``.

    Takes about a minute first, which many maps on a GPU pay back, and maps on a CPU do not.
    """
    faster = copy.copy(classifier)
    faster.model = torch.compile(classifier.model, backend=backend)  # type: ignore[assignment]
    return faster


def placed(samples: Samples, device: torch.device) -> Samples:
    """The sample set as bytes on the device, or where it is if it would fill it."""
    if device.type == "cuda" and samples.images.nbytes > SAMPLES_SHARE * _free_bytes(device):
        return samples
    return Samples(samples.images.to(device), source=samples.source)


def images_at_once(classifier: Classifier) -> int:
    """How many images to send through together: as many as fill the device, within its memory.

    Decided by the bytes that one image's activations take, and not by the clock: on a CPU it is the same every time,
    on a GPU as long as the same memory is free.
    """
    device = classifier.device
    limit = GPU_SHARE * _free_bytes(device) if device.type == "cuda" else CPU_BYTES
    return int(min(max(limit // activation_bytes(classifier), 1), MOST_IMAGES))


def activation_bytes(classifier: Classifier) -> int:
    """Bytes that are kept for the backward pass of one image."""
    kept: dict[tuple[int, int], int] = {}
    weights = {tensor.data_ptr() for tensor in (*classifier.model.parameters(), *classifier.model.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr(), tensor.nbytes] = tensor.nbytes
        return tensor.detach()  # the tensor itself may hold the graph that holds it, which Python cannot see

    pixels = torch.full((1, *classifier.shape), 0.5, device=classifier.device, requires_grad=True)
    with classifier.frozen(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = classifier(pixels)
    del answer
    return max(sum(kept.values()), 1)


def _free_bytes(device: torch.device) -> int:
    """Memory of a GPU that is free, or that PyTorch holds and does not use."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


class _Autocast(nn.Module):
    """A network in bfloat16 wherever PyTorch's autocast has it so."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.model(images)


def _copied(model: nn.Module) -> nn.Module:
    """A copy, so that the one given is left alone; itself if it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception:  # whatever copying another's code may raise: it is a way to save time and no more
        return model


def _halve_weights(model: nn.Module) -> None:
    """Store as bfloat16 what autocast would cast to it in every pass."""
    for module in model.modules():
        if type(module) in CAST_BY_AUTOCAST:
            module.to(torch.bfloat16)


def _folded(classifier: Classifier) -> nn.Module:
    """The network without the batch normalisations that follow a convolution; as it is where that fails."""
    model = classifier.model
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, *classifier.shape, generator=generator).to(classifier.device)
    folded = copy.copy(classifier)
    try:
        exactly = torch.backends.cudnn.flags(allow_tf32=False)  # whose rounding is as large as what is looked for
        with classifier.frozen(), torch.no_grad(), exactly:
            expected = classifier(pixels)
            folded.model = fuse(model)
            found = folded(pixels)
    except Exception:  # whatever tracing another's code may raise: it is a way to save time and no more
        return model
    same = found.shape == expected.shape and (found - expected).abs().max() <= ALIKE * expected.abs().max()
    return folded.model if same else model


def _cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16; without such instructions it takes twenty times as long as float32."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch cannot say
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
