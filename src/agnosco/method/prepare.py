"""A classifier made fast, since it is run hundreds of thousands of times: the same logits with less work.

``benchmarks/speed.py`` measures what each step gains.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.samples import Samples
from ..errors import AgnoscoError
from ..models.classifier import Classifier
from .config import PRECISIONS
from .folding import alike, folded

CAST_BY_AUTOCAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

CPU_BYTES = 128 * 2**20
"""Activations that a CPU holds at once; more of them make it no faster."""

GPU_SHARE = 0.5
"""Share of a GPU's free memory for activations; convolutions need the rest."""

SAMPLES_SHARE = 0.25
"""Share of a GPU's free memory for the sample set; a larger set stays on the host."""

_EXACTLY = threading.Lock()
"""Of the flags of cuDNN, which are those of the whole process."""

MOST_IMAGES = 1024
"""Greatest number of images at once: more of them make no device faster."""


def resolve_precision(name: str, device: torch.device) -> str:
    """The arithmetic that a setting means on a device: ``auto`` is bfloat16 where the hardware has it, else float32.

    Raises:
        AgnoscoError: There is no such precision.
    """
    if name not in PRECISIONS:
        raise AgnoscoError(f"no precision {name!r}", f"choose from {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    gpu_has_it = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if gpu_has_it or (device.type == "cpu" and _cpu_has_bfloat16()) else "float32"


def prepared(classifier: Classifier, *, precision: str = "float32") -> Classifier:
    """A faster copy of a classifier.

    Batch normalisations are folded into the convolutions before them where the logits stay the same. With precision
    ``bfloat16``, convolutions and matrix products are in bfloat16, unless the network does not run so: one of float64,
    or of float16 with normalisations.
    """
    faster = copy.copy(classifier)
    faster.model = _folded(classifier)
    on_gpu, halved = faster.device.type == "cuda", precision == "bfloat16"
    if faster.model is classifier.model and (on_gpu or halved):
        with suppress(Exception):  # foreign code may raise anything, and the copy only saves time
            faster.model = copy.deepcopy(classifier.model)
    if faster.model is not classifier.model:
        if on_gpu:
            faster.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if halved:
            for module in faster.model.modules():
                if type(module) in CAST_BY_AUTOCAST:
                    module.to(torch.bfloat16)  # as autocast would in every pass
    if halved:
        faster.model = _Autocast(faster.model)
    return faster if not halved or _runs(faster) else prepared(classifier)


def compiled(classifier: Classifier, *, backend: str = "inductor") -> Classifier:
    """A classifier through ``torch.compile``: it takes a minute first, which pays for many maps on a GPU."""
    faster = copy.copy(classifier)
    faster.model = _Compiled(torch.compile(classifier.model, backend=backend))  # type: ignore[arg-type]
    return faster


def placed(samples: Samples, device: torch.device) -> Samples:
    """The sample set on the device, or where it is if it is too large for the device."""
    if device.type == "cuda" and samples.images.nbytes > SAMPLES_SHARE * _free_bytes(device):
        return samples
    return Samples(samples.images.to(device), source=samples.source)


def images_at_once(classifier: Classifier) -> int:
    """How many images to send through together: as many as fill the device, within its memory.

    It follows from the bytes of one image's activations, not from the clock: it is always the same on a CPU, and on a
    GPU while the same memory is free.
    """
    device = classifier.device
    limit = GPU_SHARE * _free_bytes(device) if device.type == "cuda" else CPU_BYTES
    return int(min(max(limit // activation_bytes(classifier), 1), MOST_IMAGES))


def activation_bytes(classifier: Classifier) -> int:
    """Bytes that are kept for the backward pass of one image.

    Raises:
        AgnoscoError: There is no such pass: the network cuts gradients off.
    """
    saved: dict[tuple[int, int], int] = {}
    weights = {tensor.data_ptr() for tensor in (*classifier.model.parameters(), *classifier.model.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            saved[tensor.data_ptr(), tensor.nbytes] = tensor.nbytes
        return tensor.detach()  # the tensor itself may hold the graph that holds it, which Python cannot see

    pixels = torch.full((1, *classifier.shape), 0.5, device=classifier.device, requires_grad=True)
    with classifier.frozen(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = classifier(pixels)
    if not answer.requires_grad or torch.autograd.grad(answer.sum(), pixels, allow_unused=True)[0] is None:
        message = f"no gradient of {classifier.name} reaches the pixels"
        raise AgnoscoError(message, "let it run without torch.no_grad(), detach() and quantized layers")
    return max(sum(saved.values()), 1)


def _free_bytes(device: torch.device) -> int:
    """Memory of a GPU that is free, or reserved by PyTorch and not used."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


class _Autocast(nn.Module):
    """A network under PyTorch's autocast to bfloat16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.model(images)


class _Compiled(nn.Module):
    """A compiled network. Its hooks are looked at: else what was compiled for classes is taken for a layer's head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        from torch._dynamo import config

        if config.skip_nnmodule_hook_guards:  # which PyTorch 2.12 and later keep for each thread
            config.skip_nnmodule_hook_guards = False
        return self.model(images)


def _folded(classifier: Classifier) -> nn.Module:
    """The network with batch normalisations folded into convolutions; as it is if that fails."""
    model = classifier.model
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return model
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, *classifier.shape, generator=generator).to(classifier.device)
    faster, expected = copy.copy(classifier), []
    try:
        with classifier.frozen(), torch.no_grad(), _exactly(classifier.device):
            faster.model = folded(model, lambda: expected.append(classifier(pixels)))
            same = alike(faster(pixels), expected[0])
            same = same and all(alike(faster(image), classifier(image)) for image in _unlike(pixels[:1]))
    except Exception:  # foreign code may raise anything when it is copied, and folding only saves time
        return model
    return faster.model if same else model


def _runs(classifier: Classifier) -> bool:
    """Whether a network takes an image at all."""
    try:
        classifier.probabilities(torch.full((1, *classifier.shape), 0.5, device=classifier.device))
    except Exception:  # foreign code may raise anything
        return False
    return True


@contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """Inside, convolutions of a GPU do without TF32, whose rounding would hide a difference; all else is as it was."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    present = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    with _EXACTLY, cudnn.flags(**present, allow_tf32=False):
        yield


def _unlike(image: Tensor) -> list[Tensor]:
    """Images of the shape of another: black, white, of little contrast, and dark."""
    return [torch.zeros_like(image), torch.ones_like(image), 0.45 + image / 10, image / 4]


def _cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; without them it is twenty times slower than float32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch has no such function
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
