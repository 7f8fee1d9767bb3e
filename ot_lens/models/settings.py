"""How a model is loaded: the options of `load_model` in one record, with dtype and device resolved."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ot_lens.errors import ModelError

DeviceMap = str | dict[str, Any]


@dataclass(frozen=True)
class LoadSettings:
    """The options of `load_model` for models that are loaded by name; it describes them."""

    dtype: torch.dtype | str | None = None
    device: str | torch.device | None = None
    device_map: DeviceMap | None = None
    revision: str | None = None
    quantization: str | None = None
    gguf_file: str | None = None
    adapter: str | Path | Literal[False] | None = None
    merge_adapter: bool = False
    trust_remote_code: bool = False

    def check(self) -> None:
        """Refuse options that contradict each other."""
        if self.adapter and not isinstance(self.adapter, str | Path):
            raise ModelError(
                f"adapter must be one folder or hub name, got {self.adapter!r}: to use several, put them "
                "into the model with peft, and pass that model with its tokenizer."
            )
        if self.merge_adapter and not self.adapter:
            raise ModelError("merge_adapter=True needs an adapter: pass adapter=FOLDER.")
        if self.merge_adapter and self.quantization:
            raise ModelError(
                f"An adapter cannot be merged exactly into {self.quantization} weights: leave out "
                "merge_adapter or quantization."
            )
        if self.gguf_file and self.quantization:
            raise ModelError(
                f"quantization = {self.quantization!r}: the weights of a GGUF file are unpacked, not "
                "quantized again; leave out quantization."
            )
        if self.device is not None and self.device_map is not None:
            raise ModelError(
                f"Give device = {str(self.device)!r} or device_map = {self.device_map!r}, not both."
            )

    def with_adapter(self, adapter: str, name: str) -> "LoadSettings":
        """The settings of a name that means an adapter."""
        if self.adapter is not None:
            raise ModelError(f"{name!r} has an adapter: leave out adapter = {str(self.adapter)!r}.")
        return replace(self, adapter=adapter)

    def check_unused(self, kind: str) -> None:
        """Refuse what cannot apply to a model of some kind that is already loaded."""
        for option in fields(self):
            value = getattr(self, option.name)
            if value != option.default and option.name != "trust_remote_code":
                raise ModelError(
                    f"{option.name} = {value!r} applies to models that are loaded by name; this {kind} is "
                    "already loaded."
                )

    def resolved_dtype(self, default: torch.dtype | None) -> torch.dtype | None:
        """The dtype of weights and activations; None for the checkpoint's own."""
        if self.dtype is None:
            return default
        resolved = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype
        if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
            raise ModelError(f"dtype must be float32, bfloat16, float16 or float64, got {self.dtype!r}.")
        return resolved

    def place(self) -> torch.device | DeviceMap:
        """The device of the model, or the map of its modules to devices."""
        return _device(self.device) if self.device_map is None else self.device_map


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        available = (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        return torch.device(next((kind for kind, there in available if there), "cpu"))
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device must be cpu, cuda, cuda:NUMBER or mps, got {device!r}.") from error
    if resolved.type == "meta":
        raise ModelError("device = 'meta' holds no weights: choose cpu, cuda or mps.")
    try:
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ModelError(
            f"The device {str(device)!r} does not exist here: torch sees {torch.cuda.device_count()} CUDA "
            f"devices and {'an' if torch.backends.mps.is_available() else 'no'} MPS device."
        ) from error
    return resolved
