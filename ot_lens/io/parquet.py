"""Parquet of unknown origin: what it declares is checked before it is read, what it expands to before it is.

Pages of a column are compressed, runs are stored as counts, and equal texts once: a file of 500 bytes can
stand for 100 GB. A page by itself is at most 2 GiB (its size has 32 bits), whatever the file says elsewhere.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from ot_lens.errors import OtLensError
from ot_lens.io.untrusted import MIB, quoted

if TYPE_CHECKING:
    import pandas as pd

MOST_CELLS = 20_000_000
MOST_COLUMNS = 1_000
MOST_BYTES = 1024 * MIB


def read_arrow(content: bytes, name: str, error: type[OtLensError]) -> Any:
    """A pyarrow table, its texts not longer together than a file may be.

    Raises:
        OtLensError: Of the kind `error`, if it is no parquet file, names a column twice, or expands beyond
            all bounds.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        buffer = pa.BufferReader(content)
        declared = parquet.read_metadata(buffer)
        _check_width(declared, name, error)
        _check_chunks(parquet.ParquetFile(buffer))
        _check_length(declared, name, error)
        texts = _texts(declared)
        # Texts as codes, so that their size can be told before they are written out.
        table = parquet.ParquetFile(buffer, read_dictionary=texts).read(use_threads=False)
        _check_expanded(table, name, error)
        table.validate(full=True)
        return _written_out(table)
    except OtLensError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as cause:
        reason = (str(cause).splitlines() or [type(cause).__name__])[0][:80]
        raise error(f"{name} cannot be read: not a parquet file ({reason}). Write it again.") from cause


def _check_width(declared: Any, name: str, error: type[OtLensError]) -> None:
    if declared.num_columns > MOST_COLUMNS:
        raise error(f"{name} has {declared.num_columns} columns: more than {MOST_COLUMNS} are not read.")


def _check_chunks(file: Any) -> None:
    """Reads a value of each column: pyarrow looks at a chunk's description there and raises what it finds.

    `row_group(i).column(j)` looks at it too, but outside of all catching: the process would be aborted.
    """
    for group in range(file.num_row_groups):
        next(file.iter_batches(batch_size=1, row_groups=[group], use_threads=False), None)


def _check_length(declared: Any, name: str, error: type[OtLensError]) -> None:
    groups = [declared.row_group(i) for i in range(declared.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    cells = sum(chunk.num_values for chunk in chunks)
    size = sum(chunk.total_uncompressed_size for chunk in chunks)
    if max(cells, declared.num_rows) > MOST_CELLS or size > MOST_BYTES:
        raise error(
            f"{name} expands to {cells} cells and {size / MIB:,.0f} MiB: more than {MOST_CELLS} cells or "
            f"{MOST_BYTES // MIB} MiB are not read."
        )


def _texts(declared: Any) -> list[str]:
    columns = (declared.schema.column(i) for i in range(declared.num_columns))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _check_expanded(table: Any, name: str, error: type[OtLensError]) -> None:
    if len(set(table.column_names)) < len(table.column_names):
        raise error(f"{name}: two columns have one name: rename one.")
    size = table.nbytes + sum(_length(chunk) for column in table.columns for chunk in column.chunks)
    if size > MOST_BYTES:
        raise error(
            f"{name}: its texts are {size / MIB:,.0f} MiB when written out, more than the "
            f"{MOST_BYTES // MIB} MiB that are read."
        )


def _length(chunk: Any) -> int:
    """Bytes of the texts that codes stand for, also inside of lists."""
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
        return _length(chunk.flatten())
    if pa.types.is_struct(chunk.type):
        return sum(_length(part) for part in chunk.flatten())
    if not pa.types.is_dictionary(chunk.type) or not len(chunk.dictionary):
        return 0
    lengths = compute.cast(compute.binary_length(chunk.dictionary), pa.int64())
    return compute.sum(lengths.take(chunk.indices)).as_py() or 0


def _written_out(table: Any) -> Any:
    """The table without codes, where they stand at the top; pyarrow resolves others by itself."""
    import pyarrow as pa

    for i, column in enumerate(table.columns):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(i, table.field(i).name, column.cast(column.type.value_type))
    return table


def read_frame(content: bytes, name: str, error: type[OtLensError]) -> "pd.DataFrame":
    """A table of numbers and texts, as pandas wrote it.

    Raises:
        OtLensError: Of the kind `error`, see `read_arrow`; or if a column holds something else.
    """
    import pandas as pd

    table = read_arrow(content, name, error)
    marks = table.schema.metadata or {}
    table = table.replace_schema_metadata(None)
    odd = next((field for field in table.schema if not _plain(field.type)), None)
    if odd is not None:
        raise error(f"{name}: column {quoted(odd.name)} holds {odd.type}, neither numbers nor text.")
    try:
        frame = table.to_pandas()
        for column in _nullable(marks, table.schema):
            frame[column] = table.column(column).to_pandas(types_mapper=lambda _: pd.Int64Dtype())
    except (ValueError, MemoryError) as cause:
        raise error(f"{name}: not a table of pandas ({quoted(str(cause))}): write it again.") from cause
    return frame


def _nullable(marks: Mapping[bytes, bytes], schema: Any) -> list[str]:
    """Columns that pandas kept as whole numbers or missing; nothing else that it noted is believed."""
    import pyarrow as pa

    try:
        columns = from_json(marks.get(b"pandas", b"{}"))["columns"]
        named = {column["name"] for column in columns if column["numpy_type"] == "Int64"}
    except (ValueError, LookupError, TypeError):
        return []
    return [field.name for field in schema if field.name in named and pa.types.is_integer(field.type)]


def _plain(kind: Any) -> bool:
    import pyarrow as pa

    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string)
    return any(is_kind(kind) for is_kind in (*plain, pa.types.is_large_string, pa.types.is_null))
