"""An encoder whose embeddings a cluster computes, for commands that want them back."""

from collections.abc import Iterable, Iterator
import hashlib
import pathlib

import numpy as np

from dcse_jax.cluster import driver
from dcse_jax.cluster import embedders
from dcse_jax.cluster import manifest
from dcse_jax.cluster import tables
from dcse_jax.data import arrow
from dcse_jax.hub import folder as folder_lib
from dcse_jax.model import inference
from dcse_jax.runtime import files

_BATCH_ROWS = 4096


class SpreadEncoder:
  """What `SentenceEncoder` is to those who embed streams, by workers elsewhere.

  Args:
    name: a model folder or hub id.
    work: a folder that all workers see; texts and parts wait there until they are read.
    engine: see `engine.opened`.
    address: likewise.
    workers: likewise.

  Attributes:
    model: the model, in this machine's memory, on none of its devices.

  Raises:
    UserError: the model cannot be read.
  """

  def __init__(
    self,
    name: str,
    work: pathlib.Path,
    *,
    engine: str = "ray",
    address: str | None = None,
    workers: int | None = None,
  ):
    arrow.load(str(work))
    self.model = folder_lib.load(name)
    self._name, self._work = name, work
    self._engine = {"engine": engine, "address": address, "workers": workers}

  def encode_stream(
    self,
    sentences: Iterable[str],
    *,
    batch_size: int = 64,
    normalize_embeddings: bool = False,
    prompt_name: str | None = None,
    prompt: str | None = None,
  ) -> Iterator[np.ndarray]:
    """Yields embeddings as `SentenceEncoder.encode_stream` does.

    Interrupted, the same sentences go on after the parts that are finished.
    """
    embedder = embedders.Encoder(
      self._name,
      normalize=normalize_embeddings or None,
      prompt_name=prompt_name,
      prompt=prompt,
      batch_size=batch_size,
    )
    text, output = self._write(sentences, about=repr(embedder))
    columns = tables.Columns(text=tables.TEXT)
    driver.embed_parts(
      embedder, str(text), str(output), columns=columns, **self._engine
    )
    for entry in files.read_json(output / manifest.MANIFEST)["parts"]:
      yield from _read(output / entry["name"])
    files.remove(output)
    files.remove(text)

  def _write(
    self, sentences: Iterable[str], about: str
  ) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes sentences; returns the file, and the folder for what is made of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest = hashlib.blake2b(about.encode(), digest_size=8)
    with files.beside(self._work / "text.parquet") as new:
      with pq.ParquetWriter(new, pa.schema([(tables.TEXT, pa.string())])) as file:
        for block in inference.chunks(sentences):
          digest.update("".join(f"{len(s)}:{s}" for s in block).encode())
          file.write_table(pa.table({tables.TEXT: pa.array(block, pa.string())}))
      # The name says of what it is, so that other sentences get another folder.
      name = f"text-{digest.hexdigest()}"
      new.replace(self._work / f"{name}.parquet")
    return self._work / f"{name}.parquet", self._work / name


def _read(path: pathlib.Path) -> Iterator[np.ndarray]:
  """Yields the embeddings of a part, [m, D] at a time."""
  import pyarrow.parquet as pq

  with pq.ParquetFile(path) as file:
    for batch in file.iter_batches(_BATCH_ROWS, columns=[tables.EMBEDDING]):
      lists = batch.column(0)
      numbers = lists.flatten().to_numpy(zero_copy_only=False)
      yield numbers.reshape(len(lists), -1)
