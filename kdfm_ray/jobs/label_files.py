"""The Parquet files of a labeling artifact, read one at a time; see ``label`` for their columns.

Legend: n images, m of them, d embedding size, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from kdfm_ray.store import Artifact
from kdfm_ray.trust.rows import gather

PARTS = "parts"  # folder of the Parquet files in the artifact


@dataclass(frozen=True)
class LabelFiles:
    """Labels of all images by ``index``; embeddings as ``trust.rows.Rows``.

    At most one file's embeddings and those that were asked for are in memory. Files behind a URI
    are read where they lie.
    """

    artifact: Artifact

    def __len__(self) -> int:
        """How many images were labeled."""
        count: int = self.artifact.record()["count"]
        return count

    def pseudo_labels(self) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """Most likely class of every image, and its probability."""
        predicted = np.empty(len(self), np.int64)
        confidence = np.empty(len(self), np.float32)
        for table in self._tables(["index", "pseudo_label", "confidence"]):
            index = table["index"].to_numpy()
            predicted[index] = table["pseudo_label"].to_numpy()
            confidence[index] = table["confidence"].to_numpy()
        return predicted, confidence

    def probabilities(
        self,
    ) -> Iterator[tuple[Int64[np.ndarray, " m"], Float32[np.ndarray, "m k"]]]:
        """Positions and class probabilities of one file after the other."""
        for table in self._tables(["index", "probs"]):
            yield table["index"].to_numpy(), _matrix(table["probs"])

    def take(self, index: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """Embeddings at positions, which ascend."""
        return gather(self.parts(), index, len(self))

    def parts(self) -> Iterator[tuple[Int64[np.ndarray, " m"], Float32[np.ndarray, "m d"]]]:
        """Positions and embeddings of one file after the other."""
        for table in self._tables(["index", "embedding"]):
            yield table["index"].to_numpy(), _matrix(table["embedding"])

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        for name in self.artifact.names:
            if name.startswith(f"{PARTS}/"):
                with self.artifact.open(name) as file:
                    yield pq.read_table(file, columns=list(columns))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    flat = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    return flat.reshape(len(column), -1)
