"""Scores a model on STS sets.

`python -m dcse_jax.evaluate --model DIR --sts DIR --output results.json`
"""

from absl import flags

from dcse_jax import cli
from dcse_jax import sts
from dcse_jax.errors import UserError
from dcse_jax.files import write_json
from dcse_jax.sentence_encoder import SentenceEncoder

_MODEL = flags.DEFINE_string("model", None, "Model folder or hub id.")
_STS = flags.DEFINE_string("sts", None, "Folder of TSVs, one a set.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_POOLING = flags.DEFINE_string("pooling", None, "In place of the folder's own pooling.")
_NUM_LAYERS = flags.DEFINE_integer(
  "num_layers", None, "Evaluate the first so many layers."
)
_MAX_LENGTH = flags.DEFINE_integer(
  "max_length", None, "In place of the folder's own, in tokens."
)


def main() -> None:
  """Scores a model on every set of a folder."""
  if not _MODEL.value or not _STS.value:
    raise UserError("give --model DIR_or_id and --sts DIR")
  sets = sts.read_sts(_STS.value)
  encoder = SentenceEncoder(
    _MODEL.value,
    pooling=_POOLING.value,
    num_layers=_NUM_LAYERS.value,
    max_length=_MAX_LENGTH.value,
  )
  scores = sts.score_sts(encoder.encode, sets)
  title = (
    f"{_MODEL.value}: Spearman x 100, cosine, "
    'subsets of a file concatenated (SimCSE\'s "all")'
  )
  print(sts.format_table(scores, title))
  if _OUTPUT.value:
    write_json(_OUTPUT.value, scores)
    print(f"written to {_OUTPUT.value}")


if __name__ == "__main__":
  cli.run(main)
