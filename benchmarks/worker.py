"""One contender in a process of its own: takes a line, answers with a line."""

import argparse
import json
import os
import pathlib
import resource
import sys
import time


def make(options):
  path = pathlib.Path(options.folder)
  if options.name == "ours":
    from benchmarks import ours
    from dcse_jax.runtime import compilation

    if options.compilation_cache:
      compilation.use_cache(pathlib.Path(options.compilation_cache))

    return ours.Ours(path, options)
  if options.name == "encode ours":
    from benchmarks import ours

    return ours.EncodeOurs(path, options)
  from benchmarks import torch_peers

  peers = {
    "encode sentence-transformers": torch_peers.EncodePeer,
    "sentence-transformers": torch_peers.TrainerPeer,
  }
  return peers.get(options.name, torch_peers.Peer)(path, options)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("name")
  parser.add_argument("--folder", required=True)
  parser.add_argument("--batch", type=int, required=True)
  parser.add_argument("--teachers", type=int, default=0)
  parser.add_argument("--cached", action="store_true")
  parser.add_argument("--compile", action="store_true")
  parser.add_argument("--compilation-cache")
  parser.add_argument("--device", default="cpu", help="of PyTorch")
  parser.add_argument("--bfloat16", action="store_true", help="autocast of PyTorch")
  parser.add_argument("--without")
  parser.add_argument("--loop", action="store_true")
  options = parser.parse_args()
  # What libraries print must not come between the answers.
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)
  contender = make(options)
  for line in sys.stdin:
    command, *arguments = json.loads(line)
    start = time.perf_counter()
    value = getattr(contender, command)(*arguments)
    answer = {
      "seconds": time.perf_counter() - start,
      "value": value,
      "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps(answer), file=answers)


if __name__ == "__main__":
  main()
