"""What this machine has of memory and disk, and what would have to be downloaded, against an estimate."""

import shutil
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path

from pydantic import BaseModel, ValidationError

from ot_lens.errors import ModelError
from ot_lens.io.files import read_json
from ot_lens.paper_study.architecture import architecture
from ot_lens.paper_study.estimate import GB, Estimate, judge_model
from ot_lens.study.config import StudyConfig


@dataclass(frozen=True)
class AtHand:
    """Free memory where a study would run.

    Attributes:
        memory: Bytes.
        where: Of what, in words.
        disk: Free bytes where the run folder goes.
    """

    memory: int
    where: str
    disk: int


def at_hand(config: StudyConfig, out: Path) -> AtHand:
    """Free memory of the device that a configuration names, and free disk under the run folder."""
    import psutil
    import torch

    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    disk = shutil.disk_usage(existing).free
    main = int(psutil.virtual_memory().available)
    wanted = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not wanted.startswith("cuda") or not torch.cuda.is_available():
        return AtHand(main, "main memory", disk)
    count = torch.cuda.device_count()
    if config.device_map is not None:
        free = sum(torch.cuda.mem_get_info(i)[0] for i in range(count))
        return AtHand(free + main, f"{count} GPUs and main memory together", disk)
    return AtHand(torch.cuda.mem_get_info(torch.device(wanted))[0], wanted, disk)


def missing_models(config: StudyConfig) -> dict[str, float]:
    """Models that would have to be downloaded, with the bytes of their 16-bit weights, roughly."""
    names = [config.model, *([judge_model(config.judge)] if config.judge is not None else [])]
    return {
        name: 2.0 * architecture(name).n_parameters for name in names if not is_local(name, config.revision)
    }


def is_local(name: str, revision: str | None = None) -> bool:
    """Whether a model's weights are on this machine: an embedded one, a folder, or in the hub's cache."""
    if name.partition(":")[0] == "organism" or isdir(name):
        return True
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> Path | None:
        found = try_to_load_from_cache(name, file, revision=revision)
        return Path(found) if isinstance(found, str) else None

    if cached("model.safetensors") is not None:
        return True
    index = cached("model.safetensors.index.json")
    if index is None:
        return False
    try:
        shards = _Weights.model_validate(read_json(index)).weight_map.values()
    except ValidationError as error:
        raise ModelError(
            f"{index} names no weights: remove it from the cache, so that it is fetched again."
        ) from error
    return all(cached(shard) is not None for shard in set(shards))


class _Weights(BaseModel):
    weight_map: dict[str, str]


def obstacles(found: Estimate, here: AtHand, config: StudyConfig) -> list[str]:
    """Why a study should not start unasked, each with its remedy; empty when nothing stands against it."""
    reasons = []
    if found.memory > here.memory:
        reasons.append(
            f"about {found.memory / GB:.1f} GB of memory are needed and {here.where} has "
            f"{here.memory / GB:.1f} GB free: {_remedies(config)}"
        )
    if found.disk > here.disk:
        reasons.append(
            f"about {found.disk / GB:.1f} GB of disk are needed and {here.disk / GB:.1f} GB are free: choose "
            "another --out"
        )
    for name, size in missing_models(config).items():
        reasons.append(f"{name} is not on this machine: about {size / GB:.1f} GB would be downloaded")
    return reasons


def _remedies(config: StudyConfig) -> str:
    remedies = []
    if config.quantization is None:
        remedies.append("--quantization nf4 or int8")
    if config.device_map is None:
        remedies.append("--device-map auto")
    if config.judge is not None:
        remedies.append("--judge none, a smaller judge or --judge-memory swap")
    return ", ".join([*remedies, "a smaller --batch-size"])
