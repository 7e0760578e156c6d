"""The demo page: its answers, its errors, and that only its own page may ask."""

import contextlib
import gzip
import html
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from dcse_jax.data.lines import Lines
from dcse_jax.demo import make_server
from dcse_jax.embed import index_build
from dcse_jax.embed.sentence_encoder import SentenceEncoder
from dcse_jax.runtime.errors import UserError
from tests import models
from tests import processes
from tests import recipes

HOSTILE = '<img src=x onerror="document.title=1"></script><b>bold</b>'
CORPUS = [HOSTILE, *models.SENTENCES[:30]]
CHROMIUM = next(
  filter(
    None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))
  ),
  None,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  path = tmp_path_factory.mktemp("models")
  return [models.write_tiny_folder(path / str(seed), seed) for seed in range(2)]


@contextlib.contextmanager
def serving(folders, corpus, **kwargs):
  """A server in a thread; its port."""
  with make_server(
    folders, corpus, corpus_name="sentences of mine", port=0, **kwargs
  ) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield server.server_port
    finally:
      server.shutdown()
      thread.join()


@pytest.fixture(scope="module")
def port(folders):
  with serving(folders, CORPUS) as port:
    yield port


def ask(port, method, path, body=None, **headers):
  """Returns status, headers and text of an answer; in headers _ stands for -."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  headers = {name.replace("_", "-"): value for name, value in headers.items()}
  with contextlib.closing(connection):
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


def post(port, path, body):
  if not isinstance(body, (str, bytes)):
    body = json.dumps(body)
  status, _, text = ask(port, "POST", path, body, Content_Type="application/json")
  return status, json.loads(text)


def cosines(folder, first, second):
  """Computes cosines from the definition, [n, m]."""
  encoder = SentenceEncoder(folder)
  a, b = encoder.encode(first), encoder.encode(second)
  norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
  return a @ b.T / norms


def test_neighbours_are_the_sentences_of_the_highest_cosines(port, folders):
  query = models.SENTENCES[40]
  status, answer = post(port, "/neighbours", {"sentence": query, "count": 5})
  assert status == 200
  assert [model["name"] for model in answer["models"]] == folders
  for model in answer["models"]:
    expected = cosines(model["name"], [query], CORPUS)[0]
    best = np.argsort(-expected)[:5]
    found = model["neighbours"]
    assert [item["sentence"] for item in found] == [CORPUS[i] for i in best]
    scores = [item["score"] for item in found]
    np.testing.assert_allclose(scores, expected[best], atol=1e-5)


def test_there_are_no_more_neighbours_than_sentences(port):
  _, answer = post(port, "/neighbours", {"sentence": "a", "count": 50})
  assert [len(model["neighbours"]) for model in answer["models"]] == [len(CORPUS)] * 2


def test_an_index_is_searched_in_place_of_a_corpus(folders, tmp_path):
  (tmp_path / "a.txt").write_text("".join(f"{each}\n" for each in CORPUS))
  index = tmp_path / "mine.index"
  encoder = SentenceEncoder(folders[0])
  index_build.build(index, encoder, lines=Lines(str(tmp_path / "a.txt")))
  with serving(folders[:1], (), index=str(index)) as port:
    _, answer = post(port, "/neighbours", {"sentence": CORPUS[5], "count": 3})
    _, _, page = ask(port, "GET", "/")
  (found,) = answer["models"]
  assert found["neighbours"][0]["sentence"] == CORPUS[5]
  scores = [item["score"] for item in found["neighbours"]]
  sentences = [item["sentence"] for item in found["neighbours"]]
  expected = cosines(folders[0], [CORPUS[5]], sentences)[0]
  np.testing.assert_allclose(scores, expected, atol=0.02)  # They are of eight bits.
  assert "31 sentences of mine" in page


def test_similarities_are_the_cosines_of_each_with_each(port, folders):
  sentences = [*models.SENTENCES[50:54], models.SENTENCES[50]]
  status, answer = post(port, "/similarity", {"sentences": sentences})
  assert status == 200
  for folder, model in zip(folders, answer["models"], strict=True):
    assert model["name"] == folder
    expected = cosines(folder, sentences, sentences)
    np.testing.assert_allclose(model["matrix"], expected, atol=1e-5)


def test_requests_at_once_are_all_answered(port):
  request = {"sentences": models.SENTENCES[:3]}
  expected = post(port, "/similarity", request)
  found = []
  ask_it = lambda: found.append(post(port, "/similarity", request))
  threads = [threading.Thread(target=ask_it) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == [expected] * 8


@pytest.mark.parametrize(
  ("path", "body", "message"),
  [
    ("/neighbours", "{", "not valid JSON"),
    ("/neighbours", b'"\xff"', "not valid JSON in UTF-8"),
    ("/neighbours", "[" * 60_000, "not valid JSON"),
    ("/neighbours", [], "must be a JSON object"),
    ("/neighbours", {"count": 3}, "sentence must be a string"),
    ("/neighbours", {"sentence": 3, "count": 3}, "sentence must be a string"),
    ("/neighbours", {"sentence": " \n", "count": 3}, "sentence is empty"),
    ("/neighbours", {"sentence": "a" * 2001, "count": 3}, "has 2,001 characters"),
    ("/neighbours", {"sentence": "\ud800", "count": 3}, "half a surrogate pair"),
    ("/neighbours", {"sentence": "a"}, "count must be .* from 1 to 50"),
    ("/neighbours", {"sentence": "a", "count": 0}, "count must be .* from 1 to 50"),
    ("/neighbours", {"sentence": "a", "count": 51}, "count must be .* from 1 to 50"),
    ("/neighbours", {"sentence": "a", "count": True}, "count must be"),
    ("/neighbours", {"sentence": "a", "count": 2.5}, "count must be"),
    ("/similarity", {}, "a list of 1 to 20"),
    ("/similarity", {"sentences": []}, "a list of 1 to 20"),
    ("/similarity", {"sentences": ["a"] * 21}, "a list of 1 to 20"),
    ("/similarity", {"sentences": "abc"}, "a list of 1 to 20"),
    ("/similarity", {"sentences": ["a", None]}, "sentence 2 must be a string"),
    ("/similarity", " " * 65_537, "at most 65,536"),
    # It is more than the system would buffer: all of it is read.
    ("/similarity", " " * 20_000_000, "at most 65,536"),
  ],
)
def test_a_wrong_request_is_answered_with_one_line(port, path, body, message):
  status, answer = post(port, path, body)
  assert status == 400
  assert list(answer) == ["error"]
  assert re.search(message, answer["error"]) and "\n" not in answer["error"]


def test_the_limits_themselves_are_allowed(port):
  at_limit = {"sentence": "a" * 2000, "count": 50}
  assert post(port, "/neighbours", at_limit)[0] == 200
  assert post(port, "/similarity", {"sentences": ["a"] * 20})[0] == 200
  body = json.dumps({"sentences": ["a"]})
  assert post(port, "/similarity", body.ljust(65_536))[0] == 200


@pytest.mark.parametrize(
  ("method", "path", "status"),
  [
    ("GET", "/other", 404),
    ("POST", "/other", 404),
    ("GET", "/../demo.py", 404),
    ("GET", "/neighbours", 405),
    ("PUT", "/similarity", 405),
    ("OPTIONS", "/similarity", 405),
    ("POST", "/", 405),
    ("HEAD", "/", 405),
  ],
)
def test_other_addresses_and_methods_are_refused(port, method, path, status):
  found, headers, text = ask(port, method, path)
  assert found == status
  assert headers["Allow"] == (
    ("GET" if path == "/" else "POST") if status == 405 else None
  )
  assert method == "HEAD" or list(json.loads(text)) == ["error"]


def test_only_this_machine_is_listened_to(port):
  # Another address of the same machine, which 0.0.0.0 would answer on.
  with pytest.raises(OSError):
    socket.create_connection(("127.0.0.2", port), timeout=5).close()


def test_a_foreign_host_name_is_refused(port):
  for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "localhost:1"):
    status, _, text = ask(port, "GET", "/", Host=host)
    assert status == 403
    assert json.loads(text)["error"] == f"open http://127.0.0.1:{port}"
  assert ask(port, "GET", "/", Host=f"localhost:{port}")[0] == 200


def test_what_a_form_of_another_site_can_send_is_refused(port):
  body = json.dumps({"sentences": ["a"]})
  for kind in (
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=application/json",
  ):
    status, _, text = ask(port, "POST", "/similarity", body, Content_Type=kind)
    assert status == 415
    assert "application/json" in json.loads(text)["error"]
  assert ask(port, "POST", "/similarity", body)[0] == 415
  kind = "application/json; charset=utf-8"
  assert ask(port, "POST", "/similarity", body, Content_Type=kind)[0] == 200


def test_markup_in_a_sentence_stays_text(port):
  status, headers, page = ask(port, "GET", "/")
  assert status == 200
  assert "<img" not in page and "<b>" not in page
  settings = re.search(r'<script id="settings"[^>]*>(.*?)</script>', page)
  assert HOSTILE in json.loads(settings.group(1))["examples"]
  # Names on the page are ends of paths; these folders are called 0 and 1.
  assert list(json.loads(settings.group(1))["shown"].values()) == ["0", "1"]
  assert headers["X-Content-Type-Options"] == "nosniff"
  policy = headers["Content-Security-Policy"]
  assert policy.startswith("default-src 'none'; script-src 'sha256-")
  assert "unsafe" not in policy
  _, answer = post(port, "/neighbours", {"sentence": HOSTILE, "count": 1})
  for model in answer["models"]:
    assert model["neighbours"][0]["sentence"] == HOSTILE


def test_the_page_asks_nothing_of_other_machines(port):
  _, _, page = ask(port, "GET", "/")
  page = re.sub('<script id="settings".*', "", page)
  assert not re.findall(r"https?:|(?:src|href)=|url\(|@import", page)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_neighbours_and_heat_maps_at_once(port, folders, tmp_path):
  result = subprocess.run(
    [
      CHROMIUM,
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      f"--user-data-dir={tmp_path}",
      "--virtual-time-budget=10000",
      "--dump-dom",
      f"http://127.0.0.1:{port}/",
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )
  page = re.sub("<script.*?</script>", "", result.stdout, flags=re.DOTALL)
  # The first query is the first sentence, here with markup that must not act.
  assert "<title>Which sentences are alike?</title>" in page
  assert "<img" not in page and "<b>" not in page
  tables = re.findall(r'<table class="neighbours">.*?</table>', page, re.DOTALL)
  assert len(tables) == 2
  for folder, table in zip(folders, tables):
    best = np.argsort(-cosines(folder, [HOSTILE], CORPUS)[0])[:8]
    found = re.findall(r'<td dir="auto">(.*?)</td>', table)
    assert [html.unescape(text) for text in found] == [CORPUS[i] for i in best]
  maps = re.findall(r'<table class="heat">.*?</table>', page, re.DOTALL)
  assert len(maps) == 2
  for folder, table in zip(folders, maps):
    sentences = [html.unescape(s) for s in re.findall("<bdi>(.*?)</bdi>", table)]
    cells = re.findall(r'<td class="shade"[^>]*>(.*?)</td>', table)
    shown = [float(cell.replace("\u2212", "-")) for cell in cells]
    expected = cosines(folder, sentences, sentences).ravel()
    # Shown with two decimals.
    np.testing.assert_allclose(shown, expected, atol=0.00501)
  for folder in folders:
    # The whole path is there where the pointer rests.
    assert page.count(f'<h3 title="{folder}">') == 2
  assert "31 sentences of mine" in page


def test_a_port_in_use_is_named(port, folders):
  with pytest.raises(UserError, match=f"127.0.0.1:{port} .*give another --port"):
    make_server(folders, CORPUS, corpus_name="", port=port)


def test_a_corpus_of_one_sentence_will_do(folders):
  with serving(folders[:1], ["only one"]) as port:
    _, answer = post(port, "/neighbours", {"sentence": "only one", "count": 5})
  (found,) = answer["models"][0]["neighbours"]
  assert found == {"sentence": "only one", "score": pytest.approx(1, abs=1e-5)}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "give --model DIR_or_id once, or twice"),
    (["--model=a", "--model=b", "--model=c"], "give --model DIR_or_id once, or twice"),
    (["--model=./nowhere"], "nowhere is not a model folder"),
    (["--model=a", "--corpus=text.csv"], "give a .txt or .txt.gz file"),
    (["--model=a", "--model=b", "--index=i"], "--index is of one model"),
  ],
)
def test_a_wrong_command_prints_one_line(arguments, message):
  # Whatever gets past its check would listen on a free port, and then fail.
  result = processes.run("dcse_jax.demo", "--port=0", *arguments)
  assert result.returncode == 2, result.stderr
  (line,) = result.stderr.strip().splitlines()
  assert line.startswith("error: ") and message in line


@pytest.mark.skipif(
  signal.getsignal(signal.SIGINT) == signal.SIG_IGN, reason="Ctrl-C is off here"
)
def test_the_command_serves_distinct_sentences_until_ctrl_c(folders, tmp_path):
  corpus = tmp_path / "text.txt.gz"
  corpus.write_bytes(gzip.compress(b"one  cat\ntwo dogs\n\none cat\n"))
  command = subprocess.Popen(
    [
      sys.executable,
      "-m",
      "dcse_jax.demo",
      f"--model={folders[0]}",
      f"--corpus={corpus}",
      "--port=0",
    ],
    cwd=recipes.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  with command:
    try:
      line = command.stdout.readline()
      port = int(re.fullmatch(r"ready: http://127\.0\.0\.1:(\d+)\n", line).group(1))
      _, answer = post(port, "/neighbours", {"sentence": "two dogs", "count": 50})
      _, _, page = ask(port, "GET", "/")
      command.send_signal(signal.SIGINT)
      rest, errors = command.communicate(timeout=60)
    finally:
      command.kill()
  sentences = [item["sentence"] for item in answer["models"][0]["neighbours"]]
  assert sentences == ["two dogs", "one cat"]
  assert f"2 sentences of {corpus.name}" in page
  assert (command.returncode, rest, errors) == (0, "", "")
