"""Token shards as Parquet files, which datasets and polars read: rows with a fixed-size list of indices."""

import io
from pathlib import Path

from gsq_lightning.errors import InputError
from gsq_lightning.files import write_whole
from gsq_lightning.tokens.shards import TokenShard


def check_parquet() -> None:
    """Raises InputError where Parquet files cannot be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError("Parquet files are written with pyarrow: pip install 'gsq-lightning[parquet]'") from error


def write_parquet(path: Path, shard: TokenShard) -> None:
    """Writes a file through an atomic rename: `indices`, a list of h·w·G in raster order, `label`, `copy`, `name`.

    Equal shards are equal bytes with the same version of pyarrow.
    """
    import pyarrow
    import pyarrow.parquet

    tokens = shard.indices.flatten(1)
    table = pyarrow.table(
        {
            "indices": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(tokens.flatten().numpy()), tokens.shape[1]),
            "label": shard.label.numpy(),
            "copy": shard.copy.numpy(),
            # names of files need not be UTF-8
            "name": [shard.name(row).encode("utf-8", "backslashreplace").decode() for row in range(len(tokens))],
        }
    )
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    write_whole(path, content.getvalue())
