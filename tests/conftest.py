"""Eight fake devices, set before JAX starts, and nothing fetched from a hub."""

import atexit
import os
import shutil
import tempfile

# What is compiled here runs only a few times, so it need not be fast.
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
  ]
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# What two tests, or the commands that they run, compile alike is compiled once.
_compiled = tempfile.mkdtemp(prefix="dcse-jax-compiled-")
atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# These start JAX, so they are imported only now.
import pytest  # noqa: E402

from tests import models  # noqa: E402


@pytest.fixture
def files(tmp_path):
  """A text, STS sets and a model folder for configs that start from one."""
  (tmp_path / "text.txt").write_text("\n".join(models.SENTENCES[:60]) + "\n")
  models.write_sts(tmp_path / "sts", "STSB-dev")
  models.write_sts(tmp_path / "sts", "X-test")
  models.write_tiny_folder(tmp_path / "model", num_layers=1)
  return tmp_path
