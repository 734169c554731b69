"""Choice of the torch device."""

from __future__ import annotations


def resolve_device(device: str | None) -> str:
    """Resolve the ``device`` parameter to a torch device that exists on this machine.

    Parameters
    ----------
    device : {None, "cpu", "auto", "cuda", "cuda:0", ...}
        None means where the data is: the CPU for arrays and data frames. "auto" is CUDA where
        there is one.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the name is not one of these, or the CUDA device is missing.
    """
    if device is None or device == "cpu":
        return "cpu"
    kind, _, index = device.partition(":")
    if device != "auto" and (kind != "cuda" or (":" in device and not index.isdigit())):
        raise ValueError(
            f"The 'device' parameter must be None, 'cpu', 'auto', 'cuda' or 'cuda:<index>'. Got "
            f"{device!r} instead."
        )
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if count else "cpu"
    if int(index or 0) >= count:
        raise ValueError(
            f"device={device!r} was asked for, but torch sees {count} CUDA devices on this "
            "machine. Use device='cpu', or device='auto' to use CUDA only where there is one."
        )
    return device
