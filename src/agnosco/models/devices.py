"""Devices by name."""

import torch

from ..errors import AgnoscoError


def resolve_device(name: torch.device | str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for the fastest of this machine.

    Raises:
        AgnoscoError: This machine has no such device.
    """
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    available = [kind for kind, count in counts.items() if count]
    if str(name) == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise AgnoscoError(f"no device {name!r}", "choose auto, cpu, cuda or mps") from error
    if (device.index or 0) >= counts.get(device.type, 0):
        raise AgnoscoError(f"this machine has no {str(device)!r}", f"choose auto, or one of: {', '.join(available)}")
    return device
