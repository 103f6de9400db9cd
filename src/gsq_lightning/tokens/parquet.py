"""Token shards as Parquet files, for engines of data: rows of fixed-size lists."""

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

    rows = len(shard.label)
    tokens = shard.indices.reshape(rows, -1) if rows else shard.indices.reshape(0, shard.indices.shape[1:].numel())
    table = pyarrow.table(
        {
            "indices": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(tokens.flatten().numpy()), tokens.shape[1]),
            "label": shard.label.numpy(),
            "copy": shard.copy.numpy(),
            "name": [
                shard.name(row).encode("utf-8", "backslashreplace").decode() for row in range(rows)
            ],  # names of files need not be UTF-8
        }
    )
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    write_whole(path, content.getvalue())
