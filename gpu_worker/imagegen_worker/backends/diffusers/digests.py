"""Digests of tensor contents, to compare the arguments of calls. Each version of a tensor is read once."""

import hashlib
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from imagegen_worker.backends.diffusers.host_copies import read

_digests: Any = WeakTensorKeyDictionary()
"""(version, digest) by tensor: whole contents."""
_row_digests: Any = WeakTensorKeyDictionary()
"""((version, batch dimension), digest) by tensor: contents in which equal rows count once."""


def content_digest(tensor: torch.Tensor) -> bytes:
    """Return the SHA-256 digest of a tensor's dtype, shape, device and bytes.

    Copies the tensor from the device, unless the host has a copy.
    """
    # An expanded tensor of one element counts as contiguous, but its bytes can't be viewed.
    host = read(tensor).clone(memory_format=torch.contiguous_format)
    head = f"{host.dtype} {tuple(host.shape)} {tensor.device}".encode()
    return hashlib.sha256(head + bytes(host.reshape(-1).view(torch.uint8).numpy())).digest()


def cached_digest(tensor: torch.Tensor) -> bytes:
    """Return `content_digest`, computed once for each version of the tensor."""
    if tensor.is_inference():  # has no version
        return content_digest(tensor)
    version, digest = _digests.get(tensor, (None, b""))
    if version == tensor._version:
        return bytes(digest)
    fresh = content_digest(tensor)
    _digests[tensor] = (tensor._version, fresh)
    return fresh


def row_digest(value: Any, dim: int = 0) -> bytes:
    """Return the digest of an argument with rows: a tensor, or a list of one tensor for each row.

    Equal to that of one row if all rows are equal, whatever their number. `dim`: the batch dimension.
    """
    if not isinstance(value, torch.Tensor):
        found = [cached_digest(tensor) for tensor in value]
        return b"".join(found[:1] if len(set(found)) == 1 else found)
    if value.is_inference():  # has no version
        return _read_rows(value, dim)
    version, digest = _row_digests.get(value, (None, b""))
    if version == (value._version, dim):
        return bytes(digest)
    fresh = _read_rows(value, dim)
    _row_digests[value] = ((value._version, dim), fresh)
    return fresh


def _read_rows(tensor: torch.Tensor, dim: int) -> bytes:
    host = read(tensor)
    if host.ndim <= 1:  # timesteps: schedulers pass them in any dtype, once for a call or once for each row
        host = host.reshape(-1).double()
    host = host.movedim(dim, 0)
    return content_digest(host[:1] if bool((host == host[:1]).all()) else host)
