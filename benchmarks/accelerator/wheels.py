"""Fetches the wheels that a bare machine with JAX and PyTorch lacks.

`python -m benchmarks.accelerator.wheels` fills .whl/, some 5 MB that git ignores, for
Linux on x86-64 with Python 3.12. Such a machine has jax with its plugin, flax, optax,
orbax-checkpoint, torch, transformers, sentence-transformers and accelerate, and no way to
a registry; these are what our imports ask for beside, and sentence-transformers' trainer.
"""

import pathlib
import subprocess
import sys

WHEELS = (
  "array_record==0.8.6",
  "datasets==5.2.0",
  "dill==0.4.1",
  "grain==0.2.18",
  "ml-collections==1.1.0",
  "multiprocess==0.70.19",
  "portpicker==1.6.0",
  "tensorboardX==2.6.5",
)
FOLDER = pathlib.Path(".whl")
_PLATFORMS = (
  "manylinux_2_28_x86_64",
  "manylinux_2_27_x86_64",
  "manylinux_2_17_x86_64",
  "manylinux2014_x86_64",
)


def main() -> None:
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
  command += ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
  command += [f"--platform={platform}" for platform in _PLATFORMS]
  subprocess.run([*command, f"--dest={FOLDER}", *WHEELS], check=True)
  size = sum(file.stat().st_size for file in FOLDER.glob("*.whl"))
  print(f"{FOLDER}: {len(WHEELS)} wheels, {size / 1e6:.1f} MB")


if __name__ == "__main__":
  main()
