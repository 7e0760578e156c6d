"""TFDS: splits of prepared data sets, `tfds:NAME:SPLIT:FEATURE[,FEATURE...]`."""

from collections.abc import Iterator, Sequence
import os
import re

from dcse_jax.data import decoding

# The name may carry a version (":1.0.0") and the split a slice ("train[:10%]").
_SPEC = re.compile(r"tfds:([^:]+(?::[\d*]+\.[\d*]+\.[\d*]+)?):(.+):([^:]+)")


def columns(source: str) -> list[str]:
  """Returns the features that a source names."""
  return _parse(source)[-1]


def _parse(source: str) -> tuple[str, str, list[str]]:
  match = _SPEC.fullmatch(source)
  features = match.group(3).split(",") if match else []
  if not features or not all(features):
    raise decoding.user_error(
      f"{source}: not a TFDS source; write tfds:NAME:SPLIT:FEATURE[,FEATURE...]"
    )
  return match.group(1), match.group(2), features


def rows(
  source: str, features: Sequence[str], types: Sequence[tuple[type, ...]] = ()
) -> Iterator[Sequence[str]]:
  """Yields the features of a prepared split, all strings."""
  del types
  name, split, _ = _parse(source)
  import tensorflow_datasets as tfds  # Most runs read files, and need not wait for it.

  # TFDS reads the variable only when it is imported; here a later change counts too.
  data_dir = os.environ.get("TFDS_DATA_DIR") or os.path.expanduser(
    "~/tensorflow_datasets"
  )
  options = dict(
    data_dir=data_dir, download=False, builder_kwargs={"file_format": "array_record"}
  )
  unprepared = decoding.user_error(
    f"{source}: no whole array_record copy of {name!r} in {data_dir}; prepare it by "
    f'tfds.builder("{name}", file_format="array_record").download_and_prepare(), '
    "or set TFDS_DATA_DIR to the folder that holds it"
  )
  try:
    splits = tfds.data_source(name, split=None, **options)
  except Exception as error:  # TFDS raises half a dozen types, many lines long.
    raise unprepared from error
  if not splits:
    raise unprepared
  try:
    records = tfds.data_source(name, split=split, **options)
  except Exception as error:
    raise decoding.user_error(
      f"{source}: no split {split!r}; the splits there are: {decoding.names(splits)}"
    ) from error
  known = sorted(records.dataset_info.features)
  for feature in features:
    if feature not in known:
      raise decoding.user_error(
        f"{source}: no feature {feature!r}; the features there are: {decoding.names(known)}"
      )
  try:
    for number, row in enumerate(records):
      where = f"{source} record {number}"
      yield [_cell(where, feature, row[feature]) for feature in features]
  except RuntimeError as error:
    # array_record raises it for a shard that is missing or cut short.
    raise unprepared from error


def _cell(where: str, feature: str, value: object) -> str:
  if not isinstance(value, bytes):
    raise decoding.user_error(
      f"{where}: feature {feature!r} holds a {type(value).__name__}; "
      "name a Text feature"
    )
  try:
    return value.decode("utf-8")
  except UnicodeDecodeError as error:
    raise decoding.user_error(
      f"{where}: feature {feature!r} is not valid UTF-8; "
      "prepare the dataset from UTF-8 text"
    ) from error
