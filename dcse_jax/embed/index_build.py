"""Builds an index of a text, of embeddings that there are or that it makes first."""

import contextlib
import functools
import itertools
import pathlib
import shutil
from typing import Any

import numpy as np

from dcse_jax.data.lines import Lines
from dcse_jax.embed import embedded
from dcse_jax.embed import index_folder
from dcse_jax.embed import index_writer
from dcse_jax.embed import inverted_lists
from dcse_jax.embed.kept_rows import kept_rows
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.model import model as model_lib
from dcse_jax.model.vectors import unit_length
from dcse_jax.runtime import digests
from dcse_jax.runtime import files
from dcse_jax.runtime import locks
from dcse_jax.runtime.errors import UserError

# Queries of a text that recall is measured on, at most.
_QUERIES = 1000


def build(
  output: pathlib.Path,
  encoder: SentenceEncoder,
  *,
  lines: Lines | None = None,
  embeddings: str | None = None,
  column: str | None = None,
  queries: Lines | None = None,
  recall: float = 0.95,
  batch_size: int = 64,
) -> tuple[dict[str, Any], bool]:
  """Builds an index; it appears when it is whole.

  Until then OUTPUT's embeddings stand beside it, and the next call for the same text and
  model goes on with these; all else begins again.

  Args:
    output: the folder.
    encoder: the model.
    lines: the sentences; None where `embeddings` has them.
    embeddings: see `embedded.open_embedded`; None embeds the lines, after the prompt
      that the model's folder has for documents.
    column: likewise.
    queries: what recall is measured on; None holds some of the sentences out.
    recall: the share of the ten nearest that a search is to find.
    batch_size: sentences in a compiled batch.

  Returns:
    What the index says of itself, and whether it was there before.

  Raises:
    UserError: bad input; or there is an index of another model or text.
  """
  width = encoder.model.embedding_size
  source = None
  if embeddings is not None:
    source = embedded.open_embedded(embeddings, width, lines, column)
  origin = {
    "model": model_lib.identity(encoder.model),
    "text": source.text if source else lines.digest,
  }
  number = source.rows if source else len(lines)
  if number < 2 or (queries is not None and len(queries) < 2):
    few = "sentences" if number < 2 else "queries"
    raise UserError(f"there are fewer than two {few}: give more")
  index_writer.check_installed(number)
  with locks.output_locked(output):
    if output.exists():
      return _existing(output, origin), True
    work = output.with_name(f".{output.name}.part")
    new = work / "new"
    try:
      files.remove(new)
      if source is None:
        source = _embed(work, encoder, lines, origin, batch_size)
      _check_room(work, source)
      files.make_folder(new)
      check = lambda *sample: None
      if embeddings is not None:
        check = functools.partial(_check_match, encoder, source.name)
      asked = None if queries is None else _embed_queries(encoder, queries)
      about = index_writer.write(
        new, source, origin, queries=asked, recall=recall, check=check
      )
      digests.write(new)
      files.finish(new)
      new.rename(output)
      files.to_disk(output.parent)
      files.remove(work)
    except OSError as error:
      raise files.cannot_write(output, error) from error
    finally:
      with contextlib.suppress(OSError):
        files.remove(new)
        work.rmdir()  # Embeddings stay.
  return about, False


def describe(about: dict[str, Any]) -> str:
  """Describes an index in a line, by what it says of itself."""
  size = about["width"] + (about["code_bytes"] + 8 if about["lists"] else 0)
  how = "each compared with the query"
  if about["lists"]:
    how = f"{about['probes']} of {about['lists']:,} lists a query"
  return (
    f"{about['rows']:,} sentences, {size} bytes each besides the text, {how}: recall@10 "
    f"{about['recall@10']:.4f} against exact search, of {about['queries']:,} queries"
  )


def _existing(output: pathlib.Path, origin: dict[str, str]) -> dict[str, Any]:
  """Returns what an index says of itself; refuses that of another model or text."""
  about = index_folder.read_about(output)
  for name in origin:
    if about[name] != origin[name]:
      raise UserError(
        f"{output} is there already, the index of another {name}: name another folder, "
        "or remove it"
      )
  return about


def _embed(work, encoder, lines, origin, batch_size) -> embedded.Embedded:
  """Embeds sentences into a file of the folder of work, or goes on with it."""
  parts = lambda done: encoder.encode_stream(
    lines.iterate(done),
    prompt_name=encoder.document_prompt_name,
    normalize_embeddings=True,
    batch_size=batch_size,
  )
  shape = (len(lines), encoder.model.embedding_size)
  rows = kept_rows(
    work, "embeddings", parts, shape=shape, origin=origin, dtype="float16"
  )
  return embedded.of_rows("the text", rows, lines)


def _check_room(work: pathlib.Path, source: embedded.Embedded) -> None:
  """Refuses a disk that has less room than the rows and lists will take."""
  _, size = inverted_lists.layout(source.rows, source.width)
  needed = source.rows * (source.width + 2 * (size + 8))
  files.make_folder(work)
  if (free := shutil.disk_usage(work).free) < needed:
    raise UserError(
      f"{work.parent} has {free / 1e9:.1f} GB left, and the index takes up to "
      f"{needed / 1e9:.1f} and the text: make room, or name another disk"
    )


def _embed_queries(encoder: SentenceEncoder, queries: Lines) -> np.ndarray:
  """Embeds some queries, evenly spread."""
  step = -(-len(queries) // _QUERIES)
  texts = itertools.islice(queries.iterate(), 0, None, step)
  return encoder.encode(texts, prompt_name=encoder.query_prompt_name)


def _check_match(
  encoder: SentenceEncoder, name: str, sentences: list[str], rows: np.ndarray
) -> None:
  """Refuses embeddings that are of another model or text.

  The sentences are embedded once more; each must be nearest to its own row, or a copy.
  Prompts may differ.
  """
  own = encoder.encode(sentences, prompt_name=encoder.document_prompt_name)
  cosines = unit_length(own) @ rows.T
  is_right = cosines.diagonal() >= cosines.max(axis=1) - 1e-4
  if is_right.mean() < 0.5:
    raise UserError(
      f"{name}: {np.sum(~is_right)} of {len(rows)} embeddings are not those of their "
      "sentences by this model: encode this text by this model"
    )
