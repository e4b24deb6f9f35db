"""A Parquet file as Ray Data reads it beside engines that may hold every CPU there is.

``ray.data.read_parquet`` lists and samples files in tasks that ask for a whole CPU each, whatever it is told
(read in Ray 2.60.0), and so waits for ever where none is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from largeforge_ray.store.address import for_arrow

ROWS = 256
"""Rows of a block: the engines wait for the first one."""


def read_items(address: str, **remote: Any) -> Any:
    """The lazy Ray dataset of the rows of a file, a task for each of its row groups. ``remote`` are options
    of ``ray.data.read_datasource``."""
    import pyarrow.parquet as pq
    import ray
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    path, files = for_arrow(address)
    footer = pq.read_metadata(path, filesystem=files)
    groups = range(footer.num_row_groups)

    class RowGroups(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
            sizes = (BlockMetadata(footer.row_group(g).num_rows, None, None, None) for g in groups)
            return [
                ReadTask(partial(_blocks, address, g), size) for g, size in zip(groups, sizes, strict=True)
            ]

    source: Any = RowGroups  # Ray's own class is not typed
    # With any other number Ray Data cuts what a task reads into as many pieces.
    return ray.data.read_datasource(source(), override_num_blocks=len(groups), **remote)


def _blocks(address: str, group: int) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, files = for_arrow(address)
    with pq.ParquetFile(path, filesystem=files) as file:
        for batch in file.iter_batches(batch_size=ROWS, row_groups=[group]):
            yield pa.Table.from_batches([batch])
