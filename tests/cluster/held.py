"""An embedder that stops at a sentence, once, until somebody kills it."""

from collections.abc import Iterable, Iterator
import dataclasses
import os
import pathlib
import signal
import sys

from dcse_jax.cluster import driver
from dcse_jax.cluster import embedders
from dcse_jax.runtime import command_line

STOP = "stop here"


@dataclasses.dataclass(frozen=True)
class Held:
  """The first that comes to `STOP` writes where it is, and waits.

  Attributes:
    inner: what embeds.
    mark: the file that is written: a process id, and the id of Ray's node.
  """

  inner: embedders.Encoder
  mark: str

  def load(self) -> embedders.Loaded:
    loaded = self.inner.load()
    stream = lambda sentences: loaded.stream(self._held(sentences))
    return dataclasses.replace(loaded, stream=stream)

  def _held(self, sentences: Iterable[str]) -> Iterator[str]:
    for sentence in sentences:
      if sentence == STOP and not os.path.exists(self.mark):
        import ray

        new = pathlib.Path(f"{self.mark}.new")
        new.write_text(f"{os.getpid()} {ray.get_runtime_context().get_node_id()}")
        new.rename(self.mark)
        while True:
          signal.pause()
      yield sentence


def embed(model, text, output, mark, **options) -> None:
  """Embeds by Ray, 20 rows a part."""
  driver.embed_parts(
    Held(embedders.Encoder(model), mark),
    text,
    output,
    part_rows=20,
    engine="ray",
    **options,
  )


if __name__ == "__main__":
  command_line.run(lambda *names: embed(*names, workers=2), max_arguments=4)
  sys.exit()
