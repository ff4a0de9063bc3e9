"""One pickled weight file → safetensors, by PyTorch's reader of plain data. Run as a process of its own.

python -c "from longview.models.unpickle import main; main()" SOURCE TARGET
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file


def main() -> None:
    """Write TARGET; what is wrong with SOURCE goes to standard output in one line, with the exit code 1."""
    source, target = sys.argv[-2:]
    try:
        found = torch.load(source, map_location="cpu", weights_only=True, mmap=_is_zip(source))
    except Exception as error:  # noqa: BLE001 - both readers raise anything for bytes that are no tensors
        sys.exit(_say(" ".join(str(error).split())[:200]))
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        sys.exit(_say("holds more than tensors by name"))
    save_file(_apart(found), target, metadata={"format": "pt"})


def _is_zip(path: str) -> bool:
    """Whether the file can be mapped into memory; the format before PyTorch 1.6 cannot."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that share no memory with one another, as safetensors wants them."""
    found: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        shares = storage.data_ptr() in taken or storage.nbytes() != tensor.nbytes
        taken.add(storage.data_ptr())
        found[name] = tensor.detach().clone() if shares else tensor.detach().contiguous()
    return found


def _say(line: str) -> int:
    print(line)
    return 1
