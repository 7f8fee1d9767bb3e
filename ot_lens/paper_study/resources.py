"""Compare an estimate with this machine's memory and disk, and list the models it would have to download."""

import shutil
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path

from pydantic import BaseModel, ValidationError

from ot_lens.errors import ModelError
from ot_lens.io.files import read_json
from ot_lens.models.sizes import model_size
from ot_lens.paper_study.estimate import GB, Estimate
from ot_lens.study.config import StudyConfig
from ot_lens.study.weights import judge_model


@dataclass(frozen=True)
class Available:
    """Free bytes of memory, the device or devices that have it, and free bytes where the run folder goes."""

    memory: int
    where: str
    disk: int


def available(config: StudyConfig, out: Path) -> Available:
    """Free memory of the device that a configuration names, and free disk under the run folder."""
    import psutil
    import torch

    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    disk = shutil.disk_usage(existing).free
    main = int(psutil.virtual_memory().available)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return Available(main, "main memory", disk)
    count = torch.cuda.device_count()
    if config.device_map is not None:
        free = sum(torch.cuda.mem_get_info(i)[0] for i in range(count))
        return Available(free + main, f"{count} GPUs and main memory together", disk)
    return Available(torch.cuda.mem_get_info(torch.device(device))[0], device, disk)


def is_local(name: str, revision: str | None = None) -> bool:
    """Whether a model's weights are on this machine: embedded, in a folder, or in the hub's cache."""
    if name.partition(":")[0] == "organism" or isdir(name):
        return True
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> Path | None:
        path = try_to_load_from_cache(name, file, revision=revision)
        return Path(path) if isinstance(path, str) else None

    index = cached("model.safetensors.index.json")
    if index is None:
        return cached("model.safetensors") is not None
    try:
        shards = _Weights.model_validate(read_json(index)).weight_map.values()
    except ValidationError as error:
        raise ModelError(
            f"{index} names no weights: remove it from the cache so that it is downloaded again."
        ) from error
    return all(cached(shard) is not None for shard in set(shards))


class _Weights(BaseModel):
    weight_map: dict[str, str]


def obstacles(needed: Estimate, free: Available, config: StudyConfig) -> list[str]:
    """Reasons not to start a study without asking, each with its remedy."""
    reasons = []
    if needed.memory > free.memory:
        reasons.append(
            f"about {needed.memory / GB:.1f} GB of memory are needed and {free.where} has "
            f"{free.memory / GB:.1f} GB free: {_remedies(config)}"
        )
    if needed.disk > free.disk:
        reasons.append(
            f"about {needed.disk / GB:.1f} GB of disk are needed and {free.disk / GB:.1f} GB are free: "
            "choose another --out"
        )
    for name in (config.model, judge_model(config.judge)):
        if name is not None and not is_local(name, config.revision):
            size = 2.0 * model_size(name).n_parameters / GB  # 16-bit weights
            reasons.append(f"{name} is not on this machine: about {size:.1f} GB would be downloaded")
    return reasons


def _remedies(config: StudyConfig) -> str:
    remedies = {
        "--set quantization=nf4 or int8": config.quantization is None,
        "--set device_map=auto": config.device_map is None,
        "--set judge=null, a smaller judge or --set judge_memory=swap": config.judge is not None,
        "a smaller batch_size": True,
    }
    return ", ".join(remedy for remedy, helps in remedies.items() if helps)
