"""Reads the tensors of a file that torch.save wrote, without torch or its code.

Such a file is blocks of numbers and a pickle, a program that says what they are. Only
the instructions of that program that a state dict needs are carried out, on plain
data, and the only functions that it can call are the three of `_GLOBALS`.
"""

from collections.abc import Mapping
import io
import math
import mmap
import pathlib
import pickletools
from typing import Any, NamedTuple
import zipfile

import ml_dtypes
import numpy as np

from dcse_jax.runtime.errors import UserError

_MEND = (
  "save the model again with model.save_pretrained(folder), which writes "
  "model.safetensors"
)
_DTYPES = {
  "torch FloatStorage": np.float32,
  "torch DoubleStorage": np.float64,
  "torch HalfStorage": np.float16,
  "torch BFloat16Storage": ml_dtypes.bfloat16,
  "torch LongStorage": np.int64,
  "torch IntStorage": np.int32,
  "torch ShortStorage": np.int16,
  "torch CharStorage": np.int8,
  "torch ByteStorage": np.uint8,
  "torch BoolStorage": np.bool_,
}
# The first two numbers of a file from torch before 1.6.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

_MAX_DIMS = 64  # NumPy's own limit.
# No file is longer. Multiplying far larger numbers, of a million digits, takes minutes.
_MAX_COUNT = 2**62
# How often the tensors of a file may share its numbers, on average. Tied weights share
# them once or twice; each tensor is copied when a model is made from the file.
_MAX_SHARING = 8

# Instructions whose argument is the value itself.
_CONSTANTS = frozenset(
  "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE "
  "SHORT_BINUNICODE BINUNICODE8".split()
)


class _Unreadable(Exception):
  """A fault of a file; the message is read after the file's name."""


class _Storage(NamedTuple):
  """A block of the file: numbers of one type."""

  key: str
  dtype: np.dtype
  numel: int

  @property
  def nbytes(self) -> int:
    return self.numel * self.dtype.itemsize


class _Tensor(NamedTuple):
  """A view of a storage; offset and strides count numbers, not bytes."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.storage.dtype.itemsize


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value <= _MAX_COUNT


def _storage(name: Any) -> _Storage:
  """Checks a persistent id: kind, type, key, device, numel[, view]."""
  kind, dtype, key, _, numel, *view = name
  if (
    kind != "storage"
    or not isinstance(dtype, np.dtype)
    or type(key) is not str
    or not _is_count(numel)
    or view not in ([], [None])
  ):
    raise _Unreadable("is damaged: it describes a storage wrongly")
  return _Storage(key, dtype, numel)


def _ordered_dict() -> dict:
  return {}


def _rebuild_tensor(
  storage, offset, shape, strides, requires_grad, hooks, metadata=None
) -> _Tensor:
  if (
    not isinstance(storage, _Storage)
    or not len(shape) == len(strides) <= _MAX_DIMS
    or not all(map(_is_count, (offset, *shape, *strides)))
  ):
    raise _Unreadable("is damaged: it describes a tensor wrongly")
  if metadata:
    raise _Unreadable("holds a negated or conjugated tensor")
  numel = math.prod(shape)
  last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
  # More numbers than are stored would let a small file fill the memory.
  if numel and (last >= storage.numel or numel > storage.numel):
    raise _Unreadable("holds a tensor that is larger than its storage")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, requires_grad, hooks) -> Any:
  return tensor


_GLOBALS = {
  "collections OrderedDict": _ordered_dict,
  "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils _rebuild_parameter": _rebuild_parameter,
  **{name: np.dtype(dtype) for name, dtype in _DTYPES.items()},
}


def _global(name: str) -> Any:
  if name not in _GLOBALS:
    name = " ".join(name.split())[:80].replace(" ", ".")
    raise _Unreadable(f"holds Python code {name}, which is not run")
  return _GLOBALS[name]


def _set_items(target: Any, items: list) -> None:
  keys = items[::2]
  # Only such keys are hashed: a deeply nested tuple would overflow the C stack.
  if type(target) is not dict or not all(type(key) in (str, int) for key in keys):
    raise _Unreadable("is damaged, or no state dict")
  target.update(zip(keys, items[1::2], strict=True))


def _run(file: Any, storages: dict[str, _Storage]) -> Any:
  """Carries out the pickle at the file's position, and stops after it.

  pickle.Unpickler is not used even with a strict find_class: a few bytes can make
  it reserve gigabytes, or crash the interpreter.

  Args:
    file: binary, with read, readline and tell; no read goes beyond its end.
    storages: the pickle's storages are added to it, by key.

  Returns:
    None, bools, numbers, strings, tuples, lists, dicts, and `_Tensor` leaves.
  """
  stack, marked, memo = [], [], {}
  for opcode, argument, _ in pickletools.genops(file):
    match opcode.name:
      case "PROTO" | "FRAME":
        pass
      case name if name in _CONSTANTS:
        stack.append(argument)
      case "NONE":
        stack.append(None)
      case "NEWTRUE":
        stack.append(True)
      case "NEWFALSE":
        stack.append(False)
      case "MARK":
        marked.append(stack)
        stack = []
      case "EMPTY_TUPLE":
        stack.append(())
      case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
        items = [stack.pop() for _ in range(int(name[-1]))]
        stack.append(tuple(reversed(items)))
      case "TUPLE":
        items, stack = tuple(stack), marked.pop()
        stack.append(items)
      case "EMPTY_LIST":
        stack.append([])
      case "APPEND":
        item = stack.pop()
        stack[-1].append(item)
      case "APPENDS":
        items, stack = stack, marked.pop()
        stack[-1].extend(items)
      case "EMPTY_DICT":
        stack.append({})
      case "SETITEM":
        value, key = stack.pop(), stack.pop()
        _set_items(stack[-1], [key, value])
      case "SETITEMS":
        items, stack = stack, marked.pop()
        _set_items(stack[-1], items)
      case "BINPUT" | "LONG_BINPUT":
        memo[argument] = stack[-1]
      case "MEMOIZE":
        memo[len(memo)] = stack[-1]
      case "BINGET" | "LONG_BINGET":
        stack.append(memo[argument])
      case "GLOBAL":
        stack.append(_global(argument))
      case "STACK_GLOBAL":
        name, module = stack.pop(), stack.pop()
        stack.append(_global(f"{module:s} {name:s}"))
      case "BINPERSID":
        storage = _storage(stack.pop())
        if storages.setdefault(storage.key, storage) != storage:
          raise _Unreadable("is damaged: it describes one storage twice")
        stack.append(storage)
      case "REDUCE":
        # The only callables that can be on the stack are _GLOBALS' functions.
        arguments, function = stack.pop(), stack.pop()
        stack.append(function(*arguments))
      case "BUILD":
        stack.pop()  # Attributes of a state dict, such as its _metadata.
      case "STOP":
        return stack.pop()
      case name:
        raise _Unreadable(f"holds the pickle instruction {name}, which is not run")


def _state_dict(content: Any) -> dict[str, _Tensor]:
  if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
    content = content["state_dict"]
  if not isinstance(content, dict):
    raise _Unreadable(f"holds a {type(content).__name__}, not a state dict")
  for name, value in content.items():
    if type(name) is not str or not isinstance(value, _Tensor):
      raise _Unreadable(
        f"is no state dict: {name!r:.80} names a {type(value).__name__.lstrip('_')}; all must "
        "be strings that name tensors"
      )
  return content


def _check_sizes(
  storages: Mapping[str, _Storage], tensors: Mapping[str, _Tensor], file_size: int
) -> None:
  if sum(storage.nbytes for storage in storages.values()) > file_size:
    raise _Unreadable("is cut off, or damaged: it promises more than it holds")
  if sum(tensor.nbytes for tensor in tensors.values()) > _MAX_SHARING * file_size:
    raise _Unreadable(
      f"holds tensors that share its numbers more than {_MAX_SHARING} times over"
    )


def _array(tensor: _Tensor, data: bytes) -> np.ndarray:
  dtype = tensor.storage.dtype
  if 0 in tensor.shape:
    return np.zeros(0, dtype).reshape(tensor.shape)
  strides = [stride * dtype.itemsize for stride in tensor.strides]
  offset = tensor.offset * dtype.itemsize
  return np.ndarray(tensor.shape, dtype, data, offset, strides)


def _read_zip(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the form of torch 1.6 and later: a zip archive, an entry for each storage."""
  file_size = path.stat().st_size
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise _Unreadable("is a zip archive, but not of torch.save")
    folder = pickles[0].removesuffix("data.pkl")

    def read(name, size=None):
      entry = archive.getinfo(folder + name)
      if entry.compress_type != zipfile.ZIP_STORED:
        raise _Unreadable("is compressed, which torch.save never does")
      if entry.file_size > file_size or size not in (None, entry.file_size):
        raise _Unreadable("is damaged: an entry has the wrong length")
      return archive.read(entry)

    if folder + "byteorder" in names and read("byteorder") != b"little":
      raise _Unreadable("was written by a big-endian machine")
    tensors = _state_dict(_run(io.BytesIO(read("data.pkl")), {}))
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    _check_sizes(storages, tensors, file_size)
    data = {key: read(f"data/{key}", s.nbytes) for key, s in storages.items()}
  return {name: _array(t, data[t.storage.key]) for name, t in tensors.items()}


def _read_legacy(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the form before torch 1.6: five pickles, then storages with their lengths."""
  storages = {}
  # Reading a map ends with the file, whatever length a damaged file asks for.
  with (
    path.open("rb") as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m,
  ):
    if _run(m, {}) != _MAGIC or _run(m, {}) != _PROTOCOL:
      raise _Unreadable("is not of torch.save")
    _run(m, {})  # The machine that wrote it; numbers are always little-endian.
    tensors = _state_dict(_run(m, storages))
    keys = _run(m, {})
    _check_sizes(storages, tensors, len(m))
    data = {}
    for key in keys:
      storage = storages.get(key) if type(key) is str else None
      numel = int.from_bytes(m.read(8), "little")
      if storage is None or numel != storage.numel:
        raise _Unreadable("is damaged: its storages are not those it describes")
      data[key] = m.read(storage.nbytes)
      if len(data[key]) != storage.nbytes:
        raise _Unreadable("is cut off")
  return {name: _array(t, data[t.storage.key]) for name, t in tensors.items()}


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the state dict that torch.save wrote, such as pytorch_model.bin.

  All shapes and strides are checked against their storages, and the sums of both
  against the file, before any array is made.

  Args:
    path: a file in either of torch.save's forms. It holds a mapping from names to
      tensors, or a mapping that has one under "state_dict".

  Returns:
    The tensors by name, in the file's types (bfloat16 is ml_dtypes'). They
    are read-only, may be strided, and those that share a storage share memory.

  Raises:
    UserError: the file cannot be read, is damaged, or needs more than tensors
      of the common types to be understood.
  """
  try:
    with path.open("rb") as file:
      start = file.read(4)
    if start.startswith(b"PK"):
      return _read_zip(path)
    if start.startswith(b"\x80"):
      return _read_legacy(path)
    raise _Unreadable("is not of torch.save")
  except _Unreadable as error:
    raise UserError(f"{path} {error}: {_MEND}") from error
  except OSError as error:
    raise UserError(
      f"cannot read {path} ({error.strerror or error}): check it"
    ) from error
  except Exception as error:  # Damaged bytes fail in dozens of ways.
    reason = " ".join(str(error).split())[:80] or type(error).__name__
    raise UserError(f"{path} is damaged ({reason}): {_MEND}") from error
