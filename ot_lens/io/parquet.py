"""Parquet files of unknown origin: declared sizes are checked before reading, texts before expanding.

Column pages are compressed, runs are stored as counts, and equal texts once: a file of 500 bytes can stand
for 100 GB. A single page is at most 2 GiB (its size has 32 bits), whatever the file claims elsewhere.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from ot_lens.errors import OtLensError
from ot_lens.io.untrusted import MIB, quoted

if TYPE_CHECKING:
    import pandas as pd

MAX_CELLS = 20_000_000
MAX_COLUMNS = 1_000
MAX_BYTES = 1024 * MIB


def read_arrow(content: bytes, name: str, error: type[OtLensError]) -> Any:
    """A pyarrow table of bounded size; raises an `error` that names the file otherwise."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        buffer = pa.BufferReader(content)
        declared = parquet.read_metadata(buffer)
        if declared.num_columns > MAX_COLUMNS:
            raise error(f"{name} has {declared.num_columns} columns, but at most {MAX_COLUMNS} are read.")
        _check_chunks(parquet.ParquetFile(buffer))
        _check_declared(declared, name, error)
        columns = (declared.schema.column(i) for i in range(declared.num_columns))
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        # Texts as dictionary codes, so that their size is known before they are expanded.
        table = parquet.ParquetFile(buffer, read_dictionary=texts).read(use_threads=False)
        _check_expanded(table, name, error)
        table.validate(full=True)
        return _decoded(table)
    except OtLensError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as cause:
        reason = (str(cause).splitlines() or [type(cause).__name__])[0][:80]
        raise error(f"{name} cannot be read: not a parquet file ({reason}). Write it again.") from cause


def _check_chunks(file: Any) -> None:
    """Read one value of each column: pyarrow then checks the chunk's description and raises.

    `row_group(i).column(j)` checks it as well, but aborts the process.
    """
    for group in range(file.num_row_groups):
        next(file.iter_batches(batch_size=1, row_groups=[group], use_threads=False), None)


def _check_declared(declared: Any, name: str, error: type[OtLensError]) -> None:
    groups = [declared.row_group(i) for i in range(declared.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    cells = sum(chunk.num_values for chunk in chunks)
    size = sum(chunk.total_uncompressed_size for chunk in chunks)
    if max(cells, declared.num_rows) > MAX_CELLS or size > MAX_BYTES:
        raise error(
            f"{name} expands to {cells} cells and {size / MIB:,.0f} MiB, but at most {MAX_CELLS} cells and "
            f"{MAX_BYTES // MIB} MiB are read."
        )


def _check_expanded(table: Any, name: str, error: type[OtLensError]) -> None:
    if len(set(table.column_names)) < len(table.column_names):
        raise error(f"{name}: two columns have the same name: rename one.")
    size = table.nbytes + sum(_text_bytes(chunk) for column in table.columns for chunk in column.chunks)
    if size > MAX_BYTES:
        raise error(
            f"{name}: its texts expand to {size / MIB:,.0f} MiB, but at most {MAX_BYTES // MIB} MiB are read."
        )


def _text_bytes(chunk: Any) -> int:
    """Bytes of the texts that dictionary codes stand for, inside lists as well."""
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
        return _text_bytes(chunk.flatten())
    if pa.types.is_struct(chunk.type):
        return sum(_text_bytes(field) for field in chunk.flatten())
    if not pa.types.is_dictionary(chunk.type) or not len(chunk.dictionary):
        return 0
    lengths = compute.cast(compute.binary_length(chunk.dictionary), pa.int64())
    return compute.sum(lengths.take(chunk.indices)).as_py() or 0


def _decoded(table: Any) -> Any:
    """The table with top-level dictionary columns expanded; pyarrow resolves nested ones itself."""
    import pyarrow as pa

    for i, column in enumerate(table.columns):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(i, table.field(i).name, column.cast(column.type.value_type))
    return table


def read_frame(content: bytes, name: str, error: type[OtLensError]) -> "pd.DataFrame":
    """A table of numbers and texts that pandas wrote; raises like `read_arrow`, also for other content."""
    import pandas as pd

    table = read_arrow(content, name, error)
    metadata = table.schema.metadata or {}
    table = table.replace_schema_metadata(None)
    odd = next((field for field in table.schema if not _is_plain(field.type)), None)
    if odd is not None:
        raise error(f"{name}: column {quoted(odd.name)} holds {odd.type}, neither numbers nor text.")
    try:
        frame = table.to_pandas()
        for column in _nullable_integers(metadata, table.schema):
            frame[column] = table.column(column).to_pandas(types_mapper=lambda _: pd.Int64Dtype())
    except (ValueError, MemoryError) as cause:
        raise error(f"{name} is not a pandas table ({quoted(str(cause))}): write it again.") from cause
    return frame


def _nullable_integers(metadata: Mapping[bytes, bytes], schema: Any) -> list[str]:
    """Columns that pandas declared as Int64; nothing else of its metadata is trusted."""
    import pyarrow as pa

    try:
        columns = from_json(metadata.get(b"pandas", b"{}"))["columns"]
        names = {column["name"] for column in columns if column["numpy_type"] == "Int64"}
    except (ValueError, LookupError, TypeError):
        return []
    return [field.name for field in schema if field.name in names and pa.types.is_integer(field.type)]


def _is_plain(kind: Any) -> bool:
    import pyarrow as pa

    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string)
    return any(is_kind(kind) for is_kind in (*plain, pa.types.is_large_string, pa.types.is_null))
