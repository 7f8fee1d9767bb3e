"""The bytes of a run compared with the hashes in its manifest."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ot_lens.activations.index import read_checksums, read_index
from ot_lens.activations.stored import shard_path
from ot_lens.errors import OtLensError
from ot_lens.io.files import sha256_file
from ot_lens.study.config import from_folder, read_config
from ot_lens.study.manifest import file_hashes, manifest_hash, seeds, source_hash, versions
from ot_lens.study.verifying.comparing import Check, Checks, listed
from ot_lens.study.verifying.evidence import Evidence

UNPINNED = "its manifest has no hashes: the run is unfinished, or an earlier ot_lens made it"
PINNED = "pinned SHA-256"
# Compared with another run: `compare_runs` adds it to a finished run.
ADDED = "tables/run_cosines.parquet"


def pinned(run: Evidence, checks: Checks) -> None:
    """The manifest itself, configuration, seeds, versions, and the hash of every file."""
    manifest = run.folder.manifest
    checks += [_check_manifest(manifest), _check_finished(run), _check_config(run), _check_seeds(run)]
    with run.stage("hashes of all files", None):
        checks += [_check_versions(manifest), *_check_files(run.folder.path, manifest.get("files"))]
        for split in ("train", "test"):
            item = f"activations/{split}"
            checks.make(item, "shard checksums", _check_shards, run.folder.path / item, item)


def _check_manifest(manifest: Mapping[str, Any]) -> Check:
    item, how = "manifest.json", "its own SHA-256"
    if "sha256" not in manifest:
        return Check.unchecked(item, how, "it has none: an earlier ot_lens wrote it")
    wrong = [] if manifest["sha256"] == manifest_hash(manifest) else ["altered after it was written"]
    return Check.exact(item, how, wrong, 1)


def _check_finished(run: Evidence) -> Check:
    if run.folder.finished:
        return Check("run", "finished", 1, 1)
    folder = run.folder.path
    parts = len(list((folder / "tables" / "parts").glob("*.parquet")))
    state = [
        *(f"no {name}" for name in ("maps", "tables", "figures") if not (folder / name).is_dir()),
        *([f"{parts} parts of the sweep"] if parts else []),
        f"tables: {', '.join(run.folder.table_names) or 'none'}",
    ]
    return Check.missing("run", "finished", f"unfinished ({'; '.join(state)}): continue with --resume")


def _check_config(run: Evidence) -> Check:
    item, how, path = "config.yaml", "the manifest", run.folder.path / "config.yaml"
    if not path.is_file():
        return Check.missing(item, how, "no such file")
    try:
        # It is only compared; nothing is loaded because of it.
        theirs = read_config(path, trust_remote_code=True).model_dump()
    except OtLensError as error:
        return Check.exact(item, how, [f"cannot be read: {error}"], 0, 1)
    ours = from_folder(path.absolute().parent, run.config.model_dump())
    return Check.entries(item, how, ours, theirs)


def _check_seeds(run: Evidence) -> Check:
    stored = run.folder.manifest.get("seeds")
    if stored is None:
        return Check.unchecked("seeds", "configuration", UNPINNED)
    return Check.entries("seeds", "configuration", seeds(run.config), stored)


def _check_versions(manifest: Mapping[str, Any]) -> Check:
    """Versions then and now; a difference is only noted."""
    then, now = manifest.get("versions", {}), versions()
    different = [f"{name} {then[name]}, now {now.get(name)}" for name in then if then[name] != now.get(name)]
    if manifest.get("source_sha256") not in (None, source_hash()):
        different.insert(0, "other Python files of ot_lens")
    note = f"then {listed(different)}" if different else ""
    return Check("versions", "those installed", len(then), len(then), note=note)


def _check_files(run: Path, pins: Mapping[str, str] | None) -> Iterator[Check]:
    """One check per folder of the run."""
    if pins is None:
        yield Check.unchecked("files", PINNED, UNPINNED)
        return
    hashes = {name: value for name, value in file_hashes(run).items() if name in pins or name != ADDED}
    for folder in sorted({name.partition("/")[0] for name in (*pins, *hashes)}):
        theirs, ours = (
            {name: value for name, value in sums.items() if name.partition("/")[0] == folder}
            for sums in (pins, hashes)
        )
        yield Check.exact(folder, PINNED, _different_files(theirs, ours), len(theirs))


def _different_files(pins: Mapping[str, str], hashes: Mapping[str, str]) -> list[str]:
    return [
        *(f"{name} is missing" for name in pins if name not in hashes),
        *(f"{name} is altered" for name in pins if hashes.get(name, pins[name]) != pins[name]),
        *(f"{name} is not of this run" for name in hashes if name not in pins),
    ]


def _check_shards(folder: Path, item: str) -> Check:
    """Checksums of shards; the manifest pins the file with the checksums."""
    sums, sound = read_checksums(folder)
    pins = {shard_path(folder, name).name: sums.get(name, "none") for name in read_index(folder).shards}
    hashes = {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    wrong = [] if sound else ["shards.sha256 is altered"]
    return Check.exact(item, "shard checksums", wrong + _different_files(pins, hashes), len(pins))
