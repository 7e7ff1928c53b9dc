"""The file of a replay: one row per prediction of a frame, with its error where the truth is known. Parquet.

Equal answers give equal bytes: nothing in it is measured with a clock.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from fedfleet.cli.replay_run import Driven
from fedfleet.models.slices import Labels
from fedfleet.models.task import Task

__all__ = ["FORMAT", "FramesFile"]

FORMAT: Final = 1
_NAMES: Final = ("scenario", "track")


class FramesFile:
    """Writes a drive at a time, so that memory holds one; the file gets its name when the block ends without an error.

    Columns: region, drive, frame (of the drive, from 0), number (of the prediction in its frame), sample (row of the
    task's samples of this drive, null: no truth known), judged, the scenario and track where the task tells them,
    `output` (flat, float32), `error_<metric>` (each metric that is a plain mean) and `slice_<dimension>`. Without a
    known truth, sample, judged, errors and slices are null.
    """

    def __init__(self, path: Path, task: Task) -> None:
        self._path, self._fresh = path, path.with_name(f".{path.name}.new")
        self._task = task
        self._writer: Any = None
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            if kind is None:
                self._fresh.replace(self._path)
            else:
                self._fresh.unlink(missing_ok=True)

    def add(self, driven: Driven, values: Mapping[str, NDArray[np.float64]], labels: Labels) -> None:
        """Add a drive; ``values`` and ``labels`` are of its answered samples, in their order."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = self._table(driven, values, labels)
        if self._writer is None:
            about = {b"fedfleet.replay": f'{{"version":{FORMAT},"task":"{self._task.name}"}}'.encode()}
            schema = table.schema.with_metadata(about)
            self._writer = pq.ParquetWriter(
                self._fresh,
                schema,
                compression="zstd",
                use_dictionary=[name for name in schema.names if name != "output"],
                column_encoding={"output.list.element": "BYTE_STREAM_SPLIT"},  # a third less
            )
        self._writer.write_table(pa.Table.from_arrays(table.columns, schema=self._writer.schema))
        self.rows += table.num_rows

    def _table(self, driven: Driven, values: Mapping[str, NDArray[np.float64]], labels: Labels) -> Any:  # noqa: ANN401 - pyarrow's
        import pyarrow as pa

        every, traits = driven.every, driven.samples.traits
        none = every.sample < 0
        place = np.cumsum(~none) - 1  # of a prediction with a truth among the answered samples
        size = int(np.prod(self._task.specification.output_shape))
        flat = pa.array(every.outputs.reshape(-1))
        columns: dict[str, Any] = {
            "region": pa.array([driven.drive.region] * len(every), pa.string()),
            "drive": pa.array([driven.drive.drive] * len(every), pa.string()),
            "frame": pa.array(every.frame, pa.int32()),
            "number": pa.array(every.number, pa.int32()),
            "sample": pa.array(every.sample, pa.int64(), mask=none),
            "judged": self._of(np.asarray(driven.samples.judged), every.sample, none, pa.bool_()),
        }
        for name in _NAMES:
            if name in traits:
                columns[name] = self._of(np.asarray(traits[name]), every.sample, none, pa.string())
        columns["output"] = pa.FixedSizeListArray.from_arrays(flat, size)
        for name, each in sorted(values.items()):
            columns[f"error_{name}"] = self._of(each, place, none, pa.float64())
        for name, names in sorted(labels.items()):
            columns[f"slice_{name}"] = self._of(names, place, none, pa.string())
        return pa.table(columns)

    @staticmethod
    def _of(values: NDArray[Any], rows: NDArray[np.int64], none: NDArray[np.bool_], kind: Any) -> Any:  # noqa: ANN401 - pyarrow's
        import pyarrow as pa

        if not len(values):
            return pa.nulls(len(rows), kind)
        chosen = values[np.where(none, 0, rows)]
        return pa.array(chosen.tolist() if chosen.dtype.kind == "U" else chosen, kind, mask=none)
