"""Cloud Storage in memory: as much of it as gcsfs and TensorStore use.

Objects have generations, and requests may be conditional on them: TensorStore relies
on that. https://cloud.google.com/storage/docs/json_api/v1/objects
"""

import base64
from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import http.server
import itertools
import json
import re
import threading
import urllib.parse

_NEVER = "1970-01-01T00:00:00.000000Z"


@dataclasses.dataclass(frozen=True)
class _Object:
  content: bytes
  generation: int


class Bucket(dict):
  """The objects of gs://bucket by name; the only bucket there is.

  Attributes:
    may_write: whether clients may make objects.
  """

  may_write = True

  def __init__(self):
    super().__init__()
    self.lock = threading.Lock()
    self.generations = itertools.count(1)

  def files(self, folder: str) -> dict[str, bytes]:
    """Returns the content of objects in a folder, by name in it."""
    return {
      name.removeprefix(f"{folder}/"): found.content
      for name, found in self.copy().items()
      if name.startswith(f"{folder}/")
    }


@contextlib.contextmanager
def serve() -> Iterator[tuple[Bucket, dict[str, str]]]:
  """Yields a bucket, and the environment in which a process finds it as gs://bucket."""
  bucket = Bucket()
  handler = type("Handler", (_Handler,), {"bucket": bucket})
  with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    address = f"http://localhost:{server.server_port}"
    try:
      yield (
        bucket,
        {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address},
      )
    finally:
      server.shutdown()
      thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  bucket: Bucket
  protocol_version = "HTTP/1.1"
  # Headers and content go together: neither waits for the other to arrive.
  wbufsize = -1
  disable_nagle_algorithm = True

  def log_message(self, *_):
    pass

  def do_GET(self):
    name = self._asked()
    if name is None:
      return
    found = self.bucket.get(name)
    if name == "":
      self._answer(200, self._listed())
    elif self._refused(found):
      pass
    elif found is None:
      self._answer(404)
    elif self.query.get("alt") == "media":
      self._answer_content(found)
    else:
      self._answer(200, _described(name, found))

  def do_POST(self):
    name = self._asked()
    if name is None:
      return
    content = self._read()
    if not self.bucket.may_write:
      self._answer(
        403, {"error": {"code": 403, "message": "no storage.objects.create"}}
      )
      return
    if self.query["uploadType"] == "multipart":
      name, content = _parts(self.headers["Content-Type"], content)
    elif self.query["uploadType"] == "media":
      name = self.query["name"]
    else:  # Resumable; the content comes by PUT, here in one part.
      query = {"uploadType": "media", "name": json.loads(content)["name"]}
      here = f"http://{self.headers['Host']}{self.path.partition('?')[0]}"
      self._answer(200, headers={"Location": f"{here}?{urllib.parse.urlencode(query)}"})
      return
    with self.bucket.lock:
      if self._refused(self.bucket.get(name)):
        return
      made = _Object(content, next(self.bucket.generations))
      self.bucket[name] = made
    self._answer(200, _described(name, made))

  do_PUT = do_POST

  def do_DELETE(self):
    name = self._asked()
    if name is not None:
      with self.bucket.lock:
        found = self.bucket.pop(name, None)
      self._answer(404 if found is None else 204)

  def _asked(self) -> str | None:
    """Returns the object's name, "" for the list of all; None if this answered."""
    url = urllib.parse.urlsplit(self.path)
    self.query = dict(urllib.parse.parse_qsl(url.query))
    match = re.search(r"/b/([^/]+)/o(?:/(.+))?$", url.path)
    if match and match[1] == "bucket":
      return urllib.parse.unquote(match[2] or "")
    self._read()
    is_bucket = url.path.endswith("/b/bucket")
    self._answer(*((200, {"name": "bucket"}) if is_bucket else (404,)))
    return None

  def _read(self) -> bytes:
    return self.rfile.read(int(self.headers.get("Content-Length", 0)))

  def _refused(self, found: _Object | None) -> bool:
    """Answers a condition that does not hold; generation 0 stands for no object."""
    generation = str(found.generation if found else 0)
    if self.query.get("ifGenerationMatch", generation) != generation:
      self._answer(412)
    elif found and self.query.get("ifGenerationNotMatch") == generation:
      self._answer(304)
    else:
      return False
    return True

  def _listed(self) -> dict:
    prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
    items, prefixes = [], set()
    for name, found in sorted(self.bucket.copy().items()):
      first, met, _ = name[len(prefix) :].partition(delimiter or "\0")
      if name.startswith(prefix) and met:
        prefixes.add(prefix + first + met)
      elif name.startswith(prefix):
        items.append(_described(name, found))
    return {"items": items, "prefixes": sorted(prefixes)}

  def _answer_content(self, found: _Object):
    content, headers = found.content, {"X-Goog-Generation": str(found.generation)}
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
    if not match:
      self._answer(200, content, headers)
      return
    start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
    headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
    self._answer(206, content[start : end + 1], headers)

  def _answer(self, status, body=b"", headers=()):
    if not isinstance(body, bytes):
      body = json.dumps(body).encode()
    self.send_response(status)
    for name, value in dict(headers).items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)


def _described(name, found):
  digest = base64.b64encode(hashlib.md5(found.content).digest()).decode()
  return {
    "kind": "storage#object",
    "name": name,
    "bucket": "bucket",
    "generation": str(found.generation),
    "metageneration": "1",
    "size": str(len(found.content)),
    "md5Hash": digest,
    "timeCreated": _NEVER,
    "updated": _NEVER,
    "storageClass": "STANDARD",
  }


def _parts(content_type, body):
  """Returns the name and content of an object that came in two parts."""
  # The content may hold anything, line ends too: only the part before it is parsed.
  boundary = re.search('boundary="?([^";]+)', content_type)[1].encode()
  _, first, second = body.split(b"--" + boundary, 2)
  name = json.loads(first.strip().partition(b"\n\n")[2])["name"]
  content = second.partition(b"\n\n")[2]
  return name, content[: content.rindex(b"\n--" + boundary)]
