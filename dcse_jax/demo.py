"""Serves a local page to try models: nearest neighbours, and similarities of sentences.

`python -m dcse_jax.demo --model DIR [--model DIR2] [--corpus sentences.txt]`

--index FOLDER, which dcse_jax.index wrote, is searched in place of a corpus.
"""

import base64
from collections.abc import Sequence
import hashlib
import http.server
import json
import pathlib
import re
import sys
from typing import Any

from absl import flags

from dcse_jax.data import synthetic
from dcse_jax.data.text import read_text
from dcse_jax.embed.side_by_side import Models
from dcse_jax.runtime import command_line
from dcse_jax.runtime import files
from dcse_jax.runtime.errors import UserError

_ADDRESS = "127.0.0.1"
_PAGE = pathlib.Path(__file__).with_name("demo.html")
_METHODS = {"/": "GET", "/neighbours": "POST", "/similarity": "POST"}
_MAX_BODY = 64 * 1024  # Bytes.
_MAX_SENTENCE = 2_000  # Characters.
_MAX_SENTENCES = 20
_MAX_COUNT = 50


def make_server(
  models: Sequence[str],
  corpus: Sequence[str] = (),
  *,
  corpus_name: str,
  port: int,
  index: str | None = None,
) -> http.server.ThreadingHTTPServer:
  """Loads models, encodes a corpus and listens on 127.0.0.1.

  Args:
    models: folders or hub ids, shown side by side.
    corpus: distinct sentences, at least one, or none beside an index.
    corpus_name: what the page calls these sentences.
    port: 0 takes a free one, which the server's `server_port` then has.
    index: a folder that is searched in place of a corpus, of one model.

  Returns:
    A server whose `serve_forever` answers; the caller closes it.

  Raises:
    UserError: a model cannot be loaded, or the port cannot be had.
  """
  try:
    # This comes first, so that a used port is noticed before a corpus is encoded.
    server = _Server((_ADDRESS, port), _Handler)
  except OSError as error:
    raise UserError(
      f"cannot listen on {_ADDRESS}:{port} ({error.strerror}): "
      "give another --port, or 0 for a free one"
    ) from error
  try:
    server.models = Models(models, corpus, index)
    settings = {
      "models": list(models),
      "shown": {name: files.short_name(name) for name in models},
      "corpus": f"{server.models.num_sentences:,} {corpus_name}",
      "examples": [each[:_MAX_SENTENCE] for each in server.models.examples()],
    }
    server.page, server.content_security_policy = _render(settings)
  except BaseException:
    server.server_close()
    raise
  return server


def _render(settings: dict[str, Any]) -> tuple[bytes, str]:
  """Returns the page, and a policy that lets only its own script and style run."""
  page = _PAGE.read_text(encoding="utf-8")

  def own(tag: str) -> str:
    content = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL).group(1)
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"

  policy = (
    f"default-src 'none'; script-src {own('script')}; style-src {own('style')}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  )
  # A sentence may hold "</script>".
  text = json.dumps(settings).replace("<", "\\u003c")
  return page.replace("SETTINGS", text).encode(), policy


class _Server(http.server.ThreadingHTTPServer):
  models: Models
  page: bytes
  content_security_policy: str

  def handle_error(self, request: Any, client_address: Any) -> None:
    # It is no error if a browser goes away or loads the page anew.
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


class _Refusal(Exception):
  """A request that is not answered, and why."""

  def __init__(self, message: str, status: int = 400):
    super().__init__(message)
    self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
  """A handler that answers one request."""

  timeout = 30  # Seconds that a client may keep silent.
  server: _Server

  def _answer(self) -> None:
    try:
      # Read it even if refused: closing on unread bytes would lose the answer.
      body = self._read_body()
      self._check_host()
      path = self.path.partition("?")[0]
      if path not in _METHODS:
        raise _Refusal("there is nothing at this address", 404)
      if self.command != _METHODS[path]:
        raise _Refusal(f"{path} takes {_METHODS[path]} only", 405)
      if path == "/":
        self._send(200, "text/html; charset=utf-8", self.server.page)
        return
      fields = self._fields(body)
      if path == "/neighbours":
        answer = self.server.models.neighbours(
          _sentence(fields.get("sentence"), "sentence"), _count(fields.get("count"))
        )
      else:
        answer = self.server.models.similarity(_sentences(fields.get("sentences")))
      self._send_json(200, {"models": answer})
    except _Refusal as refusal:
      self.send_error(refusal.status, str(refusal))
    except UserError as error:
      self.send_error(500, str(error))

  do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _answer

  def _read_body(self) -> bytes | None:
    """Reads the body; None if it has no length, or one above the limit."""
    length = self.headers.get("Content-Length", "")
    if not re.fullmatch("[0-9]{1,12}", length):
      return None
    length = left = int(length)
    body = b""
    while left and (part := self.rfile.read(min(left, _MAX_BODY))):
      left -= len(part)
      if length <= _MAX_BODY:
        body += part
    return body if length <= _MAX_BODY else None

  def _check_host(self) -> None:
    # Another site could read the answers by a name of its own that leads here.
    port = self.server.server_port
    if self.headers.get_all("Host") not in (
      [f"{_ADDRESS}:{port}"],
      [f"localhost:{port}"],
    ):
      raise _Refusal(f"open http://{_ADDRESS}:{port}", 403)

  def _fields(self, body: bytes | None) -> dict[str, Any]:
    # Another site's form cannot send this type, nor its script without asking.
    if self.headers.get_content_type() != "application/json":
      raise _Refusal("the Content-Type must be application/json", 415)
    if body is None:
      raise _Refusal(f"the body must have a Content-Length of at most {_MAX_BODY:,}")
    try:
      fields = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
      raise _Refusal("the body is not valid JSON in UTF-8") from error
    if not isinstance(fields, dict):
      raise _Refusal("the body must be a JSON object")
    return fields

  def _send_json(self, status: int, content: Any) -> None:
    body = json.dumps(content, allow_nan=False).encode()
    self._send(status, "application/json", body)

  def _send(self, status: int, content_type: str, body: bytes) -> None:
    self.send_response(status)
    self.send_header("Content-Type", content_type)
    self.send_header("Content-Length", str(len(body)))
    self.send_header("Content-Security-Policy", self.server.content_security_policy)
    self.send_header("X-Content-Type-Options", "nosniff")
    self.send_header("Cache-Control", "no-store")
    if status == 405:
      self.send_header("Allow", _METHODS[self.path.partition("?")[0]])
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(body)

  def send_error(
    self, code: int, message: str | None = None, explain: str | None = None
  ) -> None:
    """Sends an error as JSON; those of the standard library come here too."""
    message = message or http.server.HTTPStatus(code).phrase
    self._send_json(int(code), {"error": " ".join(message.split())})

  def log_message(self, format: str, *args: Any) -> None:
    """Writes nothing: the terminal is for errors."""


def _sentence(value: Any, name: str) -> str:
  if not isinstance(value, str):
    raise _Refusal(f"{name} must be a string")
  if len(value) > _MAX_SENTENCE:
    raise _Refusal(
      f"{name} has {len(value):,} characters: shorten it to {_MAX_SENTENCE:,}"
    )
  # JSON can spell half a surrogate pair, which no tokenizer can encode.
  if re.search("[\ud800-\udfff]", value):
    raise _Refusal(f"{name} holds half a surrogate pair: send valid Unicode")
  # read_text cleans the corpus in the same way.
  value = " ".join(value.replace("\0", " ").split())
  if not value:
    raise _Refusal(f"{name} is empty: type one")
  return value


def _sentences(value: Any) -> list[str]:
  if not isinstance(value, list) or not 1 <= len(value) <= _MAX_SENTENCES:
    raise _Refusal(f"sentences must be a list of 1 to {_MAX_SENTENCES}")
  return [_sentence(item, f"sentence {i}") for i, item in enumerate(value, start=1)]


def _count(value: Any) -> int:
  # bool is an int too.
  if type(value) is not int or not 1 <= value <= _MAX_COUNT:
    raise _Refusal(f"count must be a whole number from 1 to {_MAX_COUNT}")
  return value


def define_flags() -> None:
  # They are not defined on import: other commands have a --model too, and a process,
  # such as that of the tests, may import several.
  flags.DEFINE_multi_string("model", [], "Model folder or hub id; one or two.")
  flags.DEFINE_string("corpus", None, ".txt or .txt.gz with a sentence a line.")
  flags.DEFINE_string("index", None, "The folder that dcse_jax.index wrote.")
  flags.DEFINE_integer(
    "port", 8000, "Port on 127.0.0.1; 0 takes a free one.", 0, 65_535
  )


def _read_corpus(path: str | None) -> tuple[list[str], str]:
  if path is None:
    name = "made-up sentences (start with --corpus FILE for your own)"
    return synthetic.sentences(300, seed=0), name
  if not path.lower().removesuffix(".gz").endswith(".txt"):
    raise UserError(
      f"--corpus={path}: give a .txt or .txt.gz file with a sentence a line"
    )
  sentences = read_text(str(files.user_path(path))).columns[0]
  return list(dict.fromkeys(sentences)), f"sentences of {pathlib.PurePath(path).name}"


def main() -> None:
  """Serves the page until Ctrl-C."""
  models = flags.FLAGS.model
  if not 1 <= len(models) <= 2:
    raise UserError("give --model DIR_or_id once, or twice to compare two models")
  index, port = flags.FLAGS.index, flags.FLAGS.port
  if index and (flags.FLAGS.corpus or len(models) > 1):
    raise UserError("--index is of one model, and has its corpus: give --model once")
  try:
    corpus, name = (), f"sentences of {pathlib.PurePath(index or '').name}"
    if not index:
      corpus, name = _read_corpus(flags.FLAGS.corpus)
    with make_server(
      models, corpus, corpus_name=name, port=port, index=index
    ) as server:
      print(f"ready: http://{_ADDRESS}:{server.server_port}", flush=True)
      server.serve_forever()
  except KeyboardInterrupt:
    pass


if __name__ == "__main__":
  command_line.run(main, define_flags)
