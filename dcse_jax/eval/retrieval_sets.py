"""Retrieval collections: documents, queries, and judgements of which answers which."""

from collections.abc import Iterator
import dataclasses
import hashlib
import logging
import pathlib

from dcse_jax.data import decoding
from dcse_jax.data import tables
from dcse_jax.runtime.errors import UserError
from dcse_jax.runtime.files import user_path

_log = logging.getLogger(__name__)

# Beyond this share of judgements that name what is not there, files do not belong
# together.
_MOST_MISSING = 0.05

_CORPORA = ("corpus.jsonl", "corpus.jsonl.gz", "corpus.tsv", "corpus.tsv.gz")


@dataclasses.dataclass(frozen=True)
class Collection:
  """Documents that stay in their file, queries, and judgements.

  Attributes:
    corpus: the file of documents.
    ids: those of the documents, in the order of the file.
    queries: the text of each query that has judgements, by its id.
    judgements: for each of these queries the grade of each judged document, by id.
    digest: that of all of it.
  """

  corpus: pathlib.Path
  ids: list[str]
  queries: dict[str, str]
  judgements: dict[str, dict[str, int]]
  digest: str

  def documents(self) -> Iterator[str]:
    """Yields the texts of the documents, title first, as the file is read again.

    Raises:
      UserError: the file is no longer what it was.
    """
    row = 0
    for row, (name, text) in enumerate(_documents(self.corpus), 1):
      if row > len(self.ids) or name != self.ids[row - 1]:
        break
      yield text
    else:
      if row == len(self.ids):
        return
    raise UserError(f"{self.corpus} changed while it was used: run again")


def read_collections(place: str, *, dev: bool) -> dict[str, Collection]:
  """Reads a collection, or all that lie in a folder.

  A collection is a folder as BEIR has it: `corpus.jsonl` with _id, text and perhaps
  title, `queries.jsonl` with _id and text, and `qrels/SPLIT.tsv` with a query, a
  document and a grade, after a header. Or it is three tables without headers:
  `corpus.tsv` with an id, perhaps a title, and a text; `queries.tsv` with an id and a
  text; `qrels.tsv`, which has no split and serves as any. Each may end in .gz.

  Args:
    place: the folder; its name is the collection's.
    dev: reads the judgements of the split "dev", in place of "test".

  Raises:
    UserError: there is none, or a file cannot be understood.
  """
  folder = user_path(place)
  folders = [folder] if _find(folder, _CORPORA) else sorted(folder.glob("*/"))
  found = {
    each.resolve().name: _read(each, dev) for each in folders if _find(each, _CORPORA)
  }
  if not found:
    raise UserError(f"{place} holds none of {', '.join(_CORPORA)}, nor a folder in it")
  return found


def _find(folder: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path | None:
  return next((folder / name for name in names if (folder / name).is_file()), None)


def _read(folder: pathlib.Path, dev: bool) -> Collection:
  corpus = _find(folder, _CORPORA)
  names = tuple(name.replace("corpus", "queries") for name in _CORPORA)
  queries = _find(folder, names)
  if queries is None:
    raise UserError(f"{folder} has documents, but none of {', '.join(names)}")
  texts = _read_queries(queries)
  judgements = _read_judgements(_find_judgements(folder, dev))
  digest = hashlib.blake2b(digest_size=16)
  digest.update(repr((sorted(texts.items()), sorted(judgements.items()))).encode())
  place: dict[str, int] = {}
  empty: list[str] = []
  for row, (name, text) in enumerate(_documents(corpus)):
    if place.setdefault(name, row) != row:
      raise decoding.user_error(
        f"{corpus}: document {row + 1} has the id {name!r} of document "
        f"{place[name] + 1}: remove one"
      )
    if not text:
      empty.append(name)
    digest.update(repr((name, text)).encode())
  if empty:
    _log.warning(
      "%s: %d of %d documents are empty, the first has the id %r; they stay in",
      *(corpus, len(empty), len(place), empty[0]),
    )
  _check_documents(folder, judgements, place)
  judgements = _judged(folder, judgements, texts)
  wanted = {name: texts[name] for name in judgements}
  return Collection(corpus, list(place), wanted, judgements, digest.hexdigest())


def _find_judgements(folder: pathlib.Path, dev: bool) -> pathlib.Path:
  split = "dev" if dev else "test"
  names = (f"qrels/{split}.tsv", f"qrels/{split}.tsv.gz", "qrels.tsv", "qrels.tsv.gz")
  path = _find(folder, names)
  if path is None:
    there = sorted(each.name for each in folder.glob("qrels/*"))
    why = "which may choose a model" if dev else "or ask for --dev"
    raise UserError(
      f"{folder} has no qrels/{split}.tsv, {why}: qrels/ holds "
      f"{', '.join(there) or 'nothing'}"
    )
  return path


def _documents(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields the id of each document, and its title and text."""
  if ".jsonl" in path.name:
    rows = tables.jsonl_rows(
      str(path), ("_id", "title", "text"), [(str, int)] * 3, optional=("title",)
    )
    rows = filter(None, rows)
  else:
    rows = _fields(path, (2, 3), "an id, perhaps a title, and a text")
  for name, *parts in rows:
    yield str(name), " ".join(str(part) for part in parts).strip()


def _read_queries(path: pathlib.Path) -> dict[str, str]:
  if ".jsonl" in path.name:
    rows = filter(None, tables.jsonl_rows(str(path), ("_id", "text"), [(str, int)] * 2))
  else:
    rows = _fields(path, (2,), "an id and a text")
  texts: dict[str, str] = {}
  for name, text in rows:
    name = str(name)
    if name in texts:
      raise decoding.user_error(f"{path}: two queries have the id {name!r}: remove one")
    texts[name] = str(text).strip()
  return texts


def _fields(
  path: pathlib.Path, sizes: tuple[int, ...], form: str
) -> Iterator[list[str]]:
  """Yields the fields of each line that is not empty, between tabs, never quoted."""
  for number, line in enumerate(decoding.lines(str(path)), 1):
    if not line.strip():
      continue
    fields = line.rstrip("\r").split("\t")
    if len(fields) not in sizes:
      raise decoding.user_error(
        f"{path} line {number}: {len(fields)} fields between tabs, not {form}"
      )
    yield fields


def _read_judgements(path: pathlib.Path) -> dict[str, dict[str, int]]:
  """Reads lines of query, document and grade, or those of TREC with a second field."""
  judgements: dict[str, dict[str, int]] = {}
  form = "a query's id, a document's and a grade"
  for number, fields in enumerate(_fields(path, (3, 4), form)):
    query, document, grade = fields[0].strip(), fields[-2].strip(), fields[-1]
    try:
      grade = int(grade)
    except ValueError as error:
      if number == 0:
        continue  # This is the header.
      raise decoding.user_error(
        f"{path}: the grade of document {document!r} for query {query!r} is "
        f"{grade!r}, not a whole number"
      ) from error
    if judgements.setdefault(query, {}).setdefault(document, grade) != grade:
      raise decoding.user_error(
        f"{path}: document {document!r} has two grades for query {query!r}: remove one"
      )
  if not judgements:
    raise UserError(f"{path} holds no judgement: nothing can be scored by it")
  return judgements


def _check_documents(
  folder: pathlib.Path, judgements: dict[str, dict[str, int]], place: dict[str, int]
) -> None:
  """Counts judgements of documents that are not there; nothing can find these."""
  judged = [name for grades in judgements.values() for name in grades]
  _tell_missing(folder, "documents", judged, [n for n in judged if n not in place])


def _judged(
  folder: pathlib.Path, judgements: dict[str, dict[str, int]], texts: dict[str, str]
) -> dict[str, dict[str, int]]:
  """Leaves out the judgements of queries that are not there, and counts them."""
  missing = [name for name in judgements if name not in texts]
  _tell_missing(folder, "queries", list(judgements), missing)
  return {name: judgements[name] for name in judgements if name in texts}


def _tell_missing(
  folder: pathlib.Path, what: str, judged: list[str], missing: list[str]
) -> None:
  if not missing:
    return
  told = (
    f"{folder}: {len(missing)} of {len(judged)} judged {what} are not there, the first "
    f"has the id {missing[0]!r}"
  )
  if len(missing) > _MOST_MISSING * len(judged):
    raise decoding.user_error(f"{told}: name judgements that belong to these files")
  fate = "are left out" if what == "queries" else "count as not found"
  _log.warning("%s; they %s", told, fate)
