"""torch.save's files against torch.load, and hostile or damaged ones."""

import collections
import os
import pickle
import zipfile

import numpy as np
import pytest

from dcse_jax import SentenceEncoder
from dcse_jax.hub import huggingface
from dcse_jax.hub import torch_file
from dcse_jax.runtime.errors import UserError
from tests import models

torch = pytest.importorskip("torch")

MATRIX = torch.arange(24, dtype=torch.float32).reshape(4, 6) - 11


@pytest.fixture(params=["zip", "legacy"])
def save(request, tmp_path):
  """Saves an object in one of torch's two forms; returns the path."""

  def save(content, **kwargs):
    path = tmp_path / "pytorch_model.bin"
    zipped = request.param == "zip"
    torch.save(content, path, _use_new_zipfile_serialization=zipped, **kwargs)
    return path

  return save


def assert_as_torch_loads(path):
  tensors = torch_file.read_tensors(path)
  expected = torch.load(path, weights_only=True)
  assert list(tensors) == list(expected)
  for name, tensor in expected.items():
    assert str(tensors[name].dtype) == str(tensor.dtype).removeprefix("torch.")
    assert tensors[name].shape == tuple(tensor.shape)
    # NumPy lacks torch's bfloat16; float64 holds every type's values.
    np.testing.assert_array_equal(
      tensors[name].astype(np.float64), tensor.detach().double().numpy()
    )


def test_a_module_reads_as_torch_loads_it(save):
  module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
  assert_as_torch_loads(save(module.state_dict()))


@pytest.mark.parametrize(
  "dtype",
  "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split(),
)
def test_every_type_reads_as_torch_loads_it(save, dtype):
  assert_as_torch_loads(save({"x": MATRIX.abs().to(getattr(torch, dtype))}))


def test_views_and_odd_shapes_read_as_torch_loads_them(save):
  path = save(
    {
      "transposed": MATRIX.T,
      "view": MATRIX[1:3, 2::2],
      "scalar": torch.tensor(2.5),
      "empty": torch.zeros(0, 3),
      "row": torch.arange(5).expand(1, -1),
      "parameter": torch.nn.Parameter(MATRIX.clone()),
    }
  )
  assert_as_torch_loads(path)


def test_tensors_of_one_storage_share_its_memory(save):
  tensors = torch_file.read_tensors(save({"a": MATRIX, "tied": MATRIX, "b": MATRIX.T}))
  assert np.shares_memory(tensors["a"], tensors["tied"])
  assert np.shares_memory(tensors["a"], tensors["b"])


def test_a_later_pickle_protocol_reads_alike(save):
  path = save({"x": MATRIX}, pickle_protocol=4)
  np.testing.assert_array_equal(torch_file.read_tensors(path)["x"], MATRIX.numpy())


def test_of_a_training_checkpoint_the_state_dict_is_taken(save):
  module = torch.nn.Linear(3, 2)
  optimizer = torch.optim.Adam(module.parameters())
  module(torch.ones(3)).sum().backward()
  optimizer.step()
  checkpoint = {
    "state_dict": module.state_dict(),
    "optimizer": optimizer.state_dict(),
    "epoch": 3,
  }
  tensors = torch_file.read_tensors(save(checkpoint))
  assert list(tensors) == ["weight", "bias"]
  np.testing.assert_array_equal(tensors["weight"], module.weight.detach().numpy())


def test_a_model_folder_with_such_weights_encodes_alike(tmp_path, save):
  name = models.write_tiny_folder(tmp_path / "model")
  expected = SentenceEncoder(name).encode(models.SENTENCES[:5])
  (tmp_path / "model" / "model.safetensors").unlink()
  model = models.tiny_model()
  tensors = huggingface.to_tensors(model.params, model.config)
  weights = {name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}
  save(weights).rename(tmp_path / "model" / "pytorch_model.bin")
  actual = SentenceEncoder(name).encode(models.SENTENCES[:5])
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
  "content, match",
  [
    ([MATRIX], "holds a list, not a state dict"),
    ({"x": MATRIX, "epoch": 3}, "'epoch' names a int; all must be"),
    ({"x": {"y": MATRIX}}, "'x' names a dict"),
    ({3: MATRIX}, "3 names a"),
    ({"x": MATRIX.to(torch.complex64)}, "Python code torch.ComplexFloatStorage,"),
    ({"x": torch.zeros(1).expand(1000)}, "is larger than its storage"),
    ({"x": torch.nn.ReLU()}, "Python code torch.nn.modules.activation.ReLU,"),
  ],
)
def test_what_is_no_state_dict_is_refused(save, content, match):
  with pytest.raises(UserError, match=match):
    torch_file.read_tensors(save(content))


class Call:
  """Pickles as a call that unpickling would make."""

  def __init__(self, *call):
    self.call = call

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_file_is_named_and_not_run(save, tmp_path, protocol):
  victim = tmp_path / "made"
  calls = {
    "posix.system": Call(os.system, (f"touch {victim}",)),
    "eval": Call(eval, (f"open({str(victim)!r}, 'w')",)),
    "open": Call(open, (str(victim), "w")),
  }
  for name, call in calls.items():
    path = save({"x": MATRIX, "y": call}, pickle_protocol=protocol)
    with pytest.raises(UserError, match=rf"Python code \S*{name}, which is not run"):
      torch_file.read_tensors(path)
    assert not victim.exists()


@pytest.mark.parametrize(
  "offset, shape, strides",
  [
    (1, (4,), (1,)),
    (0, (5,), (1,)),
    (0, (2, 2), (3, 1)),
    (-1, (2,), (1,)),
    (3, (2,), (-1,)),
    (0, (2,), (1, 1)),
    (0, (True,), (1,)),
    (0, (2**62, 4), (0, 0)),
    (0, (1,) * 65, (1,) * 65),
    (0, 4, 1),
  ],
)
def test_a_tensor_beyond_its_storage_of_four_is_refused(save, offset, shape, strides):
  rebuild = torch._utils._rebuild_tensor_v2
  storage = torch.zeros(4)._typed_storage()
  hooks = collections.OrderedDict()
  call = Call(rebuild, (storage, offset, shape, strides, False, hooks))
  with pytest.raises(UserError):
    torch_file.read_tensors(save({"x": call}))


@pytest.mark.parametrize("place", ["offset", "shape", "strides", "numel"])
def test_numbers_of_a_million_digits_are_refused_before_they_are_multiplied(
  tmp_path, place
):
  # To multiply two of them takes a moment, 64 of them minutes.
  huge = 1 << 8 * 400_000
  call = {"offset": 0, "shape": (1,) * 64, "strides": (1,) * 64, "numel": 1}
  call[place] = (huge,) * 64 if isinstance(call[place], tuple) else huge
  storage = pickle.dumps(call["numel"], protocol=2)[2:-1]
  rest = [
    pickle.dumps(call[name], protocol=2)[2:-1]
    for name in ("offset", "shape", "strides")
  ]
  pickled = (
    b"\x80\x02}X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\n"
    b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpu" + storage + b"tQ" + b"".join(rest) + b"\x89}tRs."
  )
  path = legacy_file(tmp_path / "x.bin", pickled, pickle.dumps([], protocol=2))
  with pytest.raises(UserError, match="is damaged: it describes a (tensor|storage)"):
    torch_file.read_tensors(path)


def test_views_that_add_up_to_many_times_the_file_are_refused(save):
  # 20,000 layers that share the numbers of one would fill the memory once copied.
  storage = torch.arange(1000.0)
  tied = {f"layer.{i}": storage[i:] for i in range(7)}
  tensors = torch_file.read_tensors(save(tied))
  assert tensors["layer.6"][0] == 6
  many = {f"layer.{i}": storage[i % 7 :] for i in range(2000)}
  with pytest.raises(UserError, match="share its numbers more than 8 times over"):
    torch_file.read_tensors(save(many))


def legacy_file(path, *pickles):
  """Writes a legacy file with this state dict and this list of storages."""
  head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
  head = [pickle.dumps(part, protocol=2) for part in head]
  path.write_bytes(b"".join([*head, *pickles]))
  return path


def test_a_memo_place_of_four_billion_costs_nothing(tmp_path):
  # PROTO 2, EMPTY_DICT, LONG_BINPUT 2**32 - 1, STOP: a memo that is a list would
  # take 32 GB.
  empty = b"\x80\x02}r\xff\xff\xff\xff."
  path = legacy_file(tmp_path / "x.bin", empty, pickle.dumps([], protocol=2))
  assert torch_file.read_tensors(path) == {}


@pytest.mark.parametrize(
  "pickled",
  [
    # A dict with a key of 10**6 nested tuples: hashing it overflows the C stack.
    b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s.",
    # Strings and bytes of 2**62.
    b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b".",
    b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".",
    # NEWOBJ, INST, EXT1 and a call of a function that is not there.
    b"\x80\x02cbuiltins\nobject\n)\x81.",
    b"\x80\x02(ios\nsystem\n.",
    b"\x80\x02\x82\x01.",
    b"\x80\x02)R.",
    # BUILD, to change the function that rebuilds a tensor.
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.",
    # A storage of a million numbers that the file has not.
    b"\x80\x02}X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\n"
    b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuJ\x40\x42\x0f\x00NtQK\x00K\x01\x85K\x01\x85\x89}tRs.",
  ],
)
def test_a_hostile_pickle_is_an_error_of_one_line(tmp_path, pickled):
  path = legacy_file(tmp_path / "x.bin", pickled, pickle.dumps([], protocol=2))
  with pytest.raises(UserError, match=r"\A.*x\.bin .*model\.safetensors\Z"):
    torch_file.read_tensors(path)


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"P",
    b"PK\x05\x06" + bytes(18),
    b"version https://git-lfs.github.com/spec/v1\n",
    b"\x10\x00\x00\x00\x00\x00\x00\x00{}              ",
    pickle.dumps({"x": 1}, protocol=2),
    pickle.dumps({"x": 1}, protocol=0),
  ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
  (tmp_path / "x.bin").write_bytes(content)
  with pytest.raises(UserError, match="is not of torch.save|is a zip archive, but"):
    torch_file.read_tensors(tmp_path / "x.bin")


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
  with pytest.raises(UserError, match=r"x\.bin \(No such file or directory\)"):
    torch_file.read_tensors(tmp_path / "x.bin")
  with pytest.raises(UserError, match="Is a directory"):
    torch_file.read_tensors(tmp_path)


def rewrite_zip(path, *, compression=zipfile.ZIP_STORED, **changes):
  """Writes the entries of a torch zip again, some of them changed."""
  with zipfile.ZipFile(path) as archive:
    entries = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(path, "w", compression) as archive:
    for name, content in entries.items():
      archive.writestr(name, changes.get(name.rpartition("/")[2], content))


def test_a_zip_of_other_than_torch_is_refused_with_what_is_wrong(tmp_path):
  path = tmp_path / "x.bin"
  torch.save({"x": torch.zeros(10**5)}, path)
  rewrite_zip(path)
  assert torch_file.read_tensors(path)["x"].shape == (10**5,)
  rewrite_zip(path, byteorder=b"big")
  with pytest.raises(UserError, match="big-endian"):
    torch_file.read_tensors(path)
  torch.save({"x": torch.zeros(10**5)}, path)
  rewrite_zip(path, compression=zipfile.ZIP_DEFLATED)
  with pytest.raises(UserError, match="is compressed"):
    torch_file.read_tensors(path)
  torch.save({"x": torch.zeros(10**5)}, path)
  rewrite_zip(path, **{"0": bytes(4)})
  with pytest.raises(UserError, match="promises more than it holds"):
    torch_file.read_tensors(path)


def test_a_file_cut_off_anywhere_is_refused(save):
  path = save(torch.nn.Linear(3, 4).state_dict())
  content = path.read_bytes()
  torch_file.read_tensors(path)
  # Every byte of the end, where the zip's directory or the numbers are.
  for size in [*range(0, len(content), 7), *range(len(content) - 80, len(content))]:
    path.write_bytes(content[:size])
    with pytest.raises(UserError):
      torch_file.read_tensors(path)


def test_a_changed_byte_is_an_error_or_goes_unnoticed(save):
  path = save(torch.nn.Linear(3, 4).state_dict())
  content = path.read_bytes()
  rng = np.random.default_rng(0)
  for place, change in zip(
    rng.integers(len(content), size=200), rng.integers(1, 256, 200)
  ):
    damaged = bytearray(content)
    damaged[place] ^= change
    path.write_bytes(damaged)
    try:
      tensors = torch_file.read_tensors(path)
    except UserError:
      continue
    assert all(isinstance(tensor, np.ndarray) for tensor in tensors.values())


def test_a_changed_number_of_a_zip_is_noticed(tmp_path):
  path = tmp_path / "x.bin"
  torch.save({"x": torch.full((4,), 2.5)}, path)
  content = path.read_bytes()
  numbers = np.full(4, 2.5, np.float32).tobytes()
  assert content.count(numbers) == 1
  path.write_bytes(content.replace(numbers, bytes(16)))
  with pytest.raises(UserError, match="CRC"):
    torch_file.read_tensors(path)
