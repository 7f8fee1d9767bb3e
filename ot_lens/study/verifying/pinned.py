"""The bytes of a run: what its manifest pins, and what is there."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ot_lens.activations.index import read_checksums, read_index
from ot_lens.activations.stored import shard_path
from ot_lens.errors import OtLensError
from ot_lens.io.files import sha256_file
from ot_lens.study.config import read_config
from ot_lens.study.pins import file_hashes, manifest_hash, seeds, source_hash, versions
from ot_lens.study.verifying.check import DIFFERS, MISSING, OK, UNCHECKED, Check, Checks, exact, listed
from ot_lens.study.verifying.evidence import Evidence

UNPINNED = "its manifest pins no files: the run is unfinished, or an earlier ot_lens made it"
# Of another run beside this one: `compare_runs` adds it to a finished run.
ADDED = ("tables/run_cosines.parquet",)


def pinned(run: Evidence, checks: Checks) -> None:
    """The manifest itself, configuration, seeds, versions, and the hash of every file."""
    manifest = run.folder.manifest
    checks.add(_own_hash(manifest), _finished(run))
    with checks.of("config.yaml", "the manifest"):
        checks.add(_config(run))
    checks.add(_seeds(run), _versions(manifest), *_files(run.folder.path, manifest.get("files")))
    for split in ("train", "test"):
        with checks.of(f"activations/{split}", "shard checksums"):
            checks.add(_shards(run.folder.path / "activations" / split, f"activations/{split}"))


def _own_hash(manifest: Mapping[str, Any]) -> Check:
    how = "its own SHA-256"
    if "sha256" not in manifest:
        return Check(
            "manifest.json", how, verdict=UNCHECKED, note="it holds none: an earlier ot_lens wrote it"
        )
    wrong = [] if manifest["sha256"] == manifest_hash(manifest) else ["altered after it was written"]
    return exact("manifest.json", how, wrong, 1)


def _finished(run: Evidence) -> Check:
    if run.folder.finished:
        return Check("run", "reached the end", 1, 1)
    lacking = [name for name in ("maps", "tables", "figures") if not (run.folder.path / name).is_dir()]
    parts = len(list((run.folder.path / "tables" / "parts").glob("*.parquet")))
    what = [
        *(f"no {name}" for name in lacking),
        *([f"{parts} parts of the sweep"] if parts else []),
        f"tables: {', '.join(run.folder.table_names) or 'none'}",
    ]
    note = f"unfinished ({'; '.join(what)}): go on with --resume"
    return Check("run", "reached the end", 0, 1, verdict=MISSING, note=note)


def _config(run: Evidence) -> Check:
    path = run.folder.path / "config.yaml"
    how = "the manifest"
    if not path.is_file():
        return Check("config.yaml", how, 0, 1, verdict=MISSING, note="no such file")
    try:
        # It is compared and nothing is loaded by it, so that whatever it asks for may stand there.
        held = read_config(path, trust_remote_code=True)
        ours, theirs = run.config.model_dump(), held.model_dump()
    except OtLensError as error:
        return Check("config.yaml", how, 0, 1, verdict=DIFFERS, note=f"cannot be read: {error}")
    return exact("config.yaml", how, [name for name in ours if ours[name] != theirs[name]], len(ours))


def _seeds(run: Evidence) -> Check:
    """The manifest's seeds against the configuration's, and those that the sweep wrote into its rows."""
    pins, ours = run.folder.manifest.get("seeds"), seeds(run.config)
    if pins is None:
        return Check("seeds", "configuration", verdict=UNCHECKED, note=UNPINNED)
    wrong = [name for name in ours if pins.get(name) != ours[name]]
    return exact("seeds", "configuration", wrong, len(ours))


def _versions(manifest: Mapping[str, Any]) -> Check:
    """Versions then and now; that they differ is no fault of the run."""
    then, now = manifest.get("versions", {}), versions()
    different = [f"{name} {then[name]}, now {now.get(name)}" for name in then if then[name] != now.get(name)]
    if manifest.get("source_sha256") not in (None, source_hash()):
        different.insert(0, "other Python files of ot_lens")
    note = f"then {listed(different)}" if different else ""
    return Check("versions", "those here", len(then), len(then), verdict=OK, note=note)


def _files(run: Path, pins: Mapping[str, str] | None) -> Iterator[Check]:
    """One check a folder of the run."""
    if pins is None:
        yield Check("files", "pinned SHA-256", verdict=UNCHECKED, note=UNPINNED)
        return
    held = file_hashes(run)
    names = sorted({*pins, *held})
    for group in dict.fromkeys(name.partition("/")[0] for name in names):
        mine = [name for name in names if name.partition("/")[0] == group]
        wrong = [
            *(f"{name} is missing" for name in mine if name not in held),
            *(
                f"{name} is altered"
                for name in mine
                if name in held and pins.get(name, held[name]) != held[name]
            ),
            *(f"{name} is not of this run" for name in mine if name not in pins and name not in ADDED),
        ]
        yield exact(group, "pinned SHA-256", wrong, sum(name in pins for name in mine))


def _shards(folder: Path, item: str) -> Check:
    """Checksums of shards; those are themselves pinned by the manifest."""
    sums, sound = read_checksums(folder)
    names = list(read_index(folder).shards)
    wrong = [] if sound else ["shards.sha256 is altered"]
    for name in names:
        path = shard_path(folder, name)
        if not path.is_file():
            wrong.append(f"{path.name} is missing")
        elif name not in sums:
            wrong.append(f"{path.name} has no checksum")
        elif sha256_file(path) != sums[name]:
            wrong.append(f"{path.name} is altered")
    wrong += [
        f"{path.name} is not of this run"
        for path in sorted(folder.glob("*.safetensors"))
        if path.stem not in names
    ]
    return exact(item, "shard checksums", wrong, len(names))
