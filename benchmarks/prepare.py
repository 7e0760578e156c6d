"""What every contender starts from: one model, its teachers, one text."""

import gzip
import json
import pathlib

import jax
import numpy as np

from dcse_jax.data import tokens as tokens_lib
from dcse_jax.hub import folder
from dcse_jax.hub import wordpiece
from dcse_jax.model import bert
from dcse_jax.model import encoder as encoder_lib
from dcse_jax.model import inference
from dcse_jax.model import model as model_lib
from dcse_jax.model import modernbert
from dcse_jax.model.family import EncoderConfig

# Layers, width; "base" is BERT-base, "modernbert" ModernBERT-base.
SHAPES = {
  "tiny": (2, 64),
  "4x256": (4, 256),
  "6x384": (6, 384),
  "base": (12, 768),
  "modernbert": (22, 768),
}
VOCAB_SIZE, MAX_LENGTH = 30_522, 32
_WORDS = 20_000


def read_sentences(source: str | None, count: int) -> tuple[list[str], str]:
  """Reads or makes distinct sentences, and says what they are.

  Args:
    source: a folder of gzipped text files, or a text file; None makes them up,
      as long as Wikipedia's are.
    count: how many.
  """
  if source:
    path = pathlib.Path(source)
    files = sorted(path.glob("*sentences*.txt.gz")) if path.is_dir() else [path]
    sentences: dict[str, None] = {}
    for file in files:
      with (gzip.open if file.suffix == ".gz" else open)(file, "rt") as lines:
        for line in lines:
          if line.strip():
            sentences[line.strip()] = None
          if len(sentences) == count:
            return list(sentences), "real sentences"
    raise SystemExit(f"{source}: {len(sentences)} distinct sentences, need {count}")
  rng = np.random.default_rng(0)
  letters = np.asarray(list("abcdefghijklmnopqrstuvwxyz"))
  words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(_WORDS)]
  share = 1 / np.arange(1, _WORDS + 1)
  lengths = np.clip(rng.lognormal(2.85, 0.5, count), 4, 60).astype(int)
  drawn = rng.choice(_WORDS, lengths.sum(), p=share / share.sum())
  cut = np.split(drawn, np.cumsum(lengths)[:-1])
  return [" ".join(words[i] for i in row) for row in cut], "made-up sentences"


def lengthen(sentences: list[str], length: int) -> list[str]:
  """Joins sentences to texts of a half to all of `length` words; 32 leaves them."""
  if length <= MAX_LENGTH:
    return sentences
  rng, words = np.random.default_rng(1), " ".join(sentences).split()
  texts, start = [], 0
  while start + length <= len(words):
    end = start + int(rng.integers(length // 2, length))
    texts.append(" ".join(words[start:end]))
    start = end
  return texts


def modernbert_config(layers: int) -> modernbert.EncoderConfig:
  """Makes ModernBERT-base's shape, or its first layers; like it without dropout."""
  return modernbert.EncoderConfig(
    model_type="modernbert",
    vocab_size=50_368,
    hidden_size=768,
    num_layers=layers,
    num_heads=12,
    intermediate_size=1152,
  )


def encoder_config(layers: int, width: int, vocab_size: int) -> bert.EncoderConfig:
  """A BERT with heads of 64."""
  return bert.EncoderConfig(
    model_type="bert",
    vocab_size=vocab_size,
    hidden_size=width,
    num_layers=layers,
    num_heads=width // 64,
    intermediate_size=4 * width,
    max_positions=512,
    type_vocab_size=2,
    has_pooler=True,
  )


def prepare(
  path: pathlib.Path,
  *,
  shape: str,
  sentences: list[str],
  num_teachers: int,
  length: int = MAX_LENGTH,
  layers: int | None = None,
) -> None:
  """Writes model/, teacher-I/ and their embeddings, and tokens under a folder.

  Args:
    path: the folder.
    shape: a key of `SHAPES`.
    sentences: the text.
    num_teachers: how many teachers.
    length: tokens at which sentences are cut.
    layers: how many of the first layers there are; None: all.
  """
  all_layers, width = SHAPES[shape]
  layers = layers or all_layers
  tokenizer = wordpiece.train_wordpiece(sentences, vocab_size=VOCAB_SIZE)
  # As many words as BERT's, whatever the tokenizer found: the optimizer's work.
  config: EncoderConfig = encoder_config(layers, width, VOCAB_SIZE)
  if shape == "modernbert":
    config = modernbert_config(layers)

  def make(seed: int) -> model_lib.Model:
    params = encoder_lib.init_params(config, jax.random.key(seed))
    params = jax.device_get(params)
    return model_lib.Model(config, params, tokenizer, "cls", False, length)

  student = make(0)
  folder.save(student, path / "model")
  projection = encoder_lib.init_params(
    config, jax.random.key(1), encoder_lib.Projection
  )
  np.savez(path / "projection.npz", **projection["dense"])
  path.joinpath("text.txt").write_text("\n".join(sentences) + "\n")
  token_ids = model_lib.tokenize(tokenizer, sentences, length)
  lengths = np.asarray([len(ids) for ids in token_ids])
  mask = np.arange(length) < lengths[:, None]
  ids = np.full(mask.shape, tokenizer.pad_token_id, np.int32)
  ids[mask] = np.concatenate([np.asarray(ids, np.int32) for ids in token_ids])
  np.save(path / "ids.npy", ids)
  np.save(path / "mask.npy", mask)
  for i in range(num_teachers):
    teacher = make(100 + i)
    folder.save(teacher, path / f"teacher-{i}")
    # The first one's stand for all: reading costs what reading costs.
    if i == 0:
      embeddings = inference.encode_tokens(
        teacher.params, config, token_ids, pooling="cls"
      )
    embeddings.astype(np.float16).tofile(path / f"teacher-{i}.bin")
  facts = {"mean_tokens": float(lengths.mean()), "sentences": len(sentences)}
  path.joinpath("facts.json").write_text(json.dumps(facts))


def read_tokens(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Token ids and mask of every sentence, [n, S]."""
  return np.load(path / "ids.npy"), np.load(path / "mask.npy")


def read_teacher_embeddings(path: pathlib.Path, count: int) -> list[np.ndarray]:
  """Opens the embeddings of some teachers, each [n, D] float16, memory-mapped."""
  rows = len(np.load(path / "mask.npy", mmap_mode="r"))
  files = [path / f"teacher-{i}.bin" for i in range(count)]
  return [np.memmap(f, np.float16, "r").reshape(rows, -1) for f in files]


def token_cache(path: pathlib.Path) -> tokens_lib.TokenCache:
  """The sentences as training reads them."""
  ids, mask = read_tokens(path)
  return tokens_lib.TokenCache(
    key=str(path),
    tokens=(ids[mask].astype(np.uint16),),
    offsets=(np.concatenate([[0], np.cumsum(mask.sum(axis=1))]),),
    sentence_ids=np.arange(len(ids))[:, None],
    source_rows=np.arange(len(ids)),
    max_length=ids.shape[1],
    pad_token_id=0,
    dropped=0,
    contradicting=0,
  )
