"""A small seeded language: sentences, and pairs graded by shared meaning.

A meaning fills slots with concepts (who did what to what, where, when, ...);
each concept has synonyms and each meaning many paraphrases. The grade of a pair
compares the two meanings and never the two wordings.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

# Topic -> scenes. A scene holds the agent, action, object and place that
# belong together most; within a topic any can be combined. "/" separates
# synonyms, "+" marks a plural, and "~" precedes a participle that differs from
# the past tense.
_SCENES = {
  "cooking": (
    ("chef/cook/kitchen chief", "prepared/cooked/whipped up",
     "soup/broth/bouillon", "in the kitchen/in the cookhouse/by the stove"),
    ("baker/pastry cook/breadmaker", "seasoned/flavoured/spiced",
     "cake/gateau/sponge", "in the bakery/at the bakehouse/in the cake shop"),
    ("waiter/server/waitress", "served/dished up/brought out",
     "stew/casserole/hotpot", "at the restaurant/in the bistro/at the diner"),
    ("food critic/gourmet/food writer", "tasted/sampled/tried",
     "pancakes+/crepes+/flapjacks+", "at the food market/by the food stalls"),
  ),
  "sport": (
    ("striker/forward/goalscorer", "dominated/controlled/commanded",
     "match/game/fixture", "at the stadium/in the arena/on the pitch"),
    ("runner/sprinter/athlete", "abandoned/gave up~given up",
     "race/sprint/dash", "at the running track/on the athletics oval"),
    ("referee/umpire/match official", "stopped/halted/interrupted",
     "tournament/competition/cup", "in the sports hall/at the gym"),
    ("supporter/fan/spectator", "watched/followed/viewed",
     "playoffs+/knockout rounds+", "at the clubhouse/in the club bar"),
  ),
  "music": (
    ("singer/vocalist/soprano", "performed/interpreted/rendered",
     "song/ballad/vocal number", "at the concert hall/in the auditorium"),
    ("violinist/fiddler/fiddle player", "rehearsed/ran through~run through",
     "symphony/orchestral work", "in the rehearsal room/at the practice hall"),
    ("composer/songwriter/tunesmith", "composed/wrote~written/penned",
     "opera/music drama/sung drama", "at the piano/beside the keyboard"),
    ("producer/sound engineer/record producer", "recorded/taped/laid down",
     "melodies+/airs+/tunes+", "in the recording studio/in the sound booth"),
  ),
  "travel": (
    ("tourist/holidaymaker/sightseer", "visited/toured/explored",
     "castle/fortress/citadel", "in the old town/in the historic quarter"),
    ("tour guide/tour leader/travel guide", "described/commented on/depicted",
     "temple/shrine/sanctuary", "near the border/close to the frontier"),
    ("photographer/camerawoman/cameraman", "photographed/snapped/pictured",
     "waterfalls+/cascades+/cataracts+", "in the mountains/among the peaks"),
    ("backpacker/hiker/rambler", "sketched/drew~drawn",
     "monument/statue/memorial", "on the island/on the isle"),
  ),
  "school": (
    ("teacher/schoolmaster/instructor", "corrected/marked/graded",
     "essay/composition/assignment", "in the classroom/in the schoolroom"),
    ("pupil/schoolboy/schoolchild", "studied/pored over/read",
     "exam paper/test paper/quiz", "in the school library/in the reading room"),
    ("professor/lecturer/academic", "discussed/debated/talked over",
     "poem/verse/rhyme", "in the lecture hall/at the lecture theatre"),
    ("headteacher/principal/headmistress", "checked/looked over/inspected",
     "sums+/maths exercises+", "in the staff room/in the teachers' lounge"),
  ),
}  # fmt: skip

# Slots whose values go with every topic. Attitudes that end
# with a comma can stand anywhere; the others need a plain clause after them.
_SHARED = {
  "quality": (
    "famous/celebrated/well-known", "excellent/superb/first-rate",
    "dreadful/terrible/awful", "unusual/strange/odd",
    "much-loved/beloved/cherished", "ordinary/unremarkable/run-of-the-mill",
  ),
  "manner": (
    "quickly/rapidly/in a hurry", "slowly/unhurriedly/at a leisurely pace",
    "carefully/with great care/attentively", "secretly/in secret/on the sly",
    "cheerfully/happily/in good spirits", "skilfully/expertly/with great skill",
    "reluctantly/unwillingly/with some reluctance",
  ),
  "time": (
    "in the morning/before noon/early in the day", "yesterday/one day ago",
    "in the evening/after sunset/at nightfall", "last year/twelve months ago",
    "last week/a week ago/seven days ago", "on Monday/at the start of the week",
    "in winter/during the cold months/in the snowy season",
    "in summer/during the hot months/in the warm season",
    "at midnight/in the middle of the night/in the dead of night",
  ),
}  # fmt: skip

# (the slot that must be filled, the form). "{mid}" takes a one-word manner; what
# a form does not place follows at the end: manner, place, time.
_TEMPLATES = (
  ("", "{agent} {mid} {did} {object}"),
  ("time", "{time}, {agent} {mid} {did} {object}"),
  ("place", "{place}, {agent} {mid} {did} {object}"),
  ("", "{object} {was} {mid} {done} by {agent}"),
  ("time", "{time}, {object} {was} {mid} {done} by {agent}"),
  ("place", "{place}, {object} {was} {mid} {done} by {agent}"),
)

_CORE = ("agent", "action", "object")
_TOPICAL = (*_CORE, "place")
_OPTIONAL = ("place", *_SHARED)
_WEIGHTS = {
  "agent": 3.0, "action": 3.0, "object": 3.0, "place": 1.5,
  "quality": 1.0, "manner": 1.0, "time": 1.0,
}  # fmt: skip
# What a slot loses, as a share of its weight, when its value changes within the
# topic or is left out. Any other change loses all of it.
_NEAR_COST = 0.6


class Concept(NamedTuple):
  """A value of a slot: its topic ("" if it goes with all) and its synonyms."""

  topic: str
  words: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Meaning:
  """The content of a sentence; None leaves an optional slot out."""

  agent: Concept
  action: Concept
  object: Concept
  place: Concept | None = None
  quality: Concept | None = None
  manner: Concept | None = None
  time: Concept | None = None


def _lexicon() -> dict[tuple[str, str], tuple[Concept, ...]]:
  """Returns the concepts of every (slot, topic); shared slots have topic ""."""
  table = {
    (slot, ""): tuple(Concept("", tuple(c.split("/"))) for c in cells)
    for slot, cells in _SHARED.items()
  }
  for topic, scenes in _SCENES.items():
    for slot, cells in zip(_TOPICAL, zip(*scenes, strict=True), strict=True):
      table[slot, topic] = tuple(
        Concept(topic, tuple(cell.split("/"))) for cell in cells
      )
  return table


_LEXICON = _lexicon()
TOPICS = tuple(_SCENES)


def _pick(options, rng):
  # This is an order of magnitude faster than Generator.choice.
  return options[int(rng.random() * len(options))]


def _value(slot: str, topic: str, rng) -> Concept:
  return _pick(_LEXICON[slot, topic if slot in _TOPICAL else ""], rng)


def draw_meaning(rng: np.random.Generator, topic: str | None = None) -> Meaning:
  """Draws a meaning whose slots all come from one topic.

  Args:
    rng: The source of randomness.
    topic: One of TOPICS, or None to draw one.

  Returns:
    A meaning with one or two of its optional slots filled.
  """
  topic = topic or _pick(TOPICS, rng)
  scene = int(rng.random() * len(_SCENES[topic]))
  number = TOPICS.index(topic) * len(_SCENES[topic]) + scene
  chosen = list(_OPTIONAL)
  while len(chosen) > 2 or (len(chosen) > 1 and rng.random() < 0.4):
    chosen.remove(_pick(chosen, rng))
  slots = {}
  for slot in (*_CORE, *chosen):
    # Synonyms must keep company that related words do not keep, or no
    # model could tell them apart: each scene has a favourite in each slot.
    if rng.random() < 0.5:
      options = _LEXICON[slot, topic if slot in _TOPICAL else ""]
      favourite = scene if slot in _TOPICAL else number
      slots[slot] = options[favourite % len(options)]
    else:
      slots[slot] = _value(slot, topic, rng)
  return Meaning(**slots)


def _forms(meaning: Meaning) -> list[str]:
  """Lists the forms that a meaning can fill."""
  return [f for need, f in _TEMPLATES if not need or getattr(meaning, need)]


def _with_article(noun: str, definite: bool) -> str:
  if definite:
    return f"the {noun.strip('+')}"
  if noun.endswith("+"):
    return f"some {noun.strip('+')}"
  return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def say(meaning: Meaning, rng: np.random.Generator) -> str:
  """Puts a meaning into words: draws the form, the synonyms and the articles.

  Args:
    meaning: What to say.
    rng: The source of randomness.

  Returns:
    One sentence, capitalised and closed by a full stop.
  """
  form = _pick(_forms(meaning), rng)
  words = dict.fromkeys(_WEIGHTS, "")
  for slot in _WEIGHTS:
    concept = getattr(meaning, slot)
    if concept is not None:
      words[slot] = _pick(concept.words, rng)
  did, _, done = words["action"].partition("~")
  manner = words["manner"]
  middle = " " not in manner
  thing = f"{words['quality']} {words['object']}".strip()
  words |= {
    "agent": _with_article(words["agent"], rng.random() < 0.7),
    "object": _with_article(thing, rng.random() < 0.7),
    "was": "were" if thing.endswith("+") else "was",
    "did": did,
    "done": done or did,
    "mid": manner if middle else "",
    "end": "" if middle else manner,
  }
  rest = [words[s] for s in ("end", "place", "time") if f"{{{s}}}" not in form]
  text = " ".join(f"{form.format(**words)} {' '.join(rest)}".split())
  return f"{text[0].upper()}{text[1:]}."


def similarity(first: Meaning, second: Meaning) -> float:
  """Grades how much of their meaning two sentences share.

  Args:
    first: One meaning.
    second: The other; the order does not matter.

  Returns:
    5.0 for equal meanings, less by the weighted share of slots that
    differ, and 0.0 where agent, action and object are all of other topics.
  """
  total = lost = 0.0
  far = 0
  for slot, weight in _WEIGHTS.items():
    one, other = getattr(first, slot), getattr(second, slot)
    if one is None and other is None:
      continue
    total += weight
    if one == other:
      continue
    near = one is None or other is None or one.topic == other.topic != ""
    lost += weight * (_NEAR_COST if near else 1.0)
    far += slot in _CORE and not near
  return 0.0 if far == len(_CORE) else round(5.0 * (1.0 - lost / total), 2)


def _changed(meaning: Meaning, rng, *, unrelated: bool = False) -> Meaning:
  """Changes a random part of the slots, or also every one with a topic."""
  home = meaning.agent.topic
  away = _pick([topic for topic in TOPICS if topic != home], rng)
  rate = rng.random()
  distance = 1.0 if unrelated else rng.random()
  slots = {}
  for slot in _WEIGHTS:
    forced = unrelated and slot in _TOPICAL
    if slot in slots or not (forced or rng.random() < rate):
      continue
    topic = away if rng.random() < distance else home
    present = getattr(meaning, slot) is not None
    # An absent slot mostly stays absent and a present one present, or
    # length alone would tell the grade.
    if slot in _OPTIONAL and rng.random() < 0.1:
      slots[slot] = None if present else _value(slot, topic, rng)
    elif present:
      slots[slot] = _value(slot, topic, rng)
    # Nobody steers a cake, so action and object change their topic together.
    if slot in ("action", "object") and topic == away:
      slots["action"] = _value("action", topic, rng)
      slots["object"] = _value("object", topic, rng)
  return dataclasses.replace(meaning, **slots)


def sentences(n: int, *, seed: int) -> list[str]:
  """Draws distinct sentences, each about one topic.

  Args:
    n: How many, from 0 to 1,000,000 (the language holds more than that).
    seed: Decides every draw; 0 or more.

  Returns:
    n different strings, the same on every machine.
  """
  rng = np.random.default_rng(seed)
  found: dict[str, None] = {}
  while len(found) < n:
    found[say(draw_meaning(rng), rng)] = None
  return list(found)


def graded_pairs(n: int, *, seed: int) -> list[tuple[float, str, str]]:
  """Draws pairs of sentences with the grade of the meaning they share.

  Args:
    n: How many pairs, from 0 to 1,000,000.
    seed: Decides every draw; 0 or more.

  Returns:
    n different (grade, sentence, sentence), the two sentences never equal.
    Grades run from 0.0 to 5.0 and, rounded to whole numbers, go through 0,
    1, 2, 3, 4, 5 in turn, so that any six in a row hold every level.
  """
  rng = np.random.default_rng(seed)
  found: dict[tuple[str, str], float] = {}
  while len(found) < n:
    level = len(found) % 6
    first = second = draw_meaning(rng)
    if level < 5:
      second = _changed(first, rng, unrelated=level == 0)
    grade = similarity(first, second)
    # A half is rounded up, as a reader would.
    if int(grade + 0.5) != level:
      continue
    one, other = say(first, rng), say(second, rng)
    pair = (one, other)
    if one != other and pair not in found and pair[::-1] not in found:
      found[pair] = grade
  return [(grade, *pair) for pair, grade in found.items()]
