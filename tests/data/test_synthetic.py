"""The synthetic language: repeatable, well formed, graded by meaning only."""

import collections
import dataclasses
import re

import numpy as np
import pytest

from dcse_jax.data import synthetic


def test_one_seed_gives_one_language_and_another_seed_another():
  assert synthetic.sentences(50, seed=3) == synthetic.sentences(50, seed=3)
  assert synthetic.sentences(50, seed=3) != synthetic.sentences(50, seed=4)
  pairs = synthetic.graded_pairs(50, seed=3)
  assert pairs == synthetic.graded_pairs(50, seed=3)
  assert pairs != synthetic.graded_pairs(50, seed=4)


def test_a_shorter_draw_is_the_start_of_a_longer_one():
  assert synthetic.sentences(20, seed=0) == synthetic.sentences(80, seed=0)[:20]
  pairs = synthetic.graded_pairs(80, seed=0)
  assert synthetic.graded_pairs(20, seed=0) == pairs[:20]


def test_no_sentence_comes_twice():
  drawn = synthetic.sentences(5000, seed=0)
  assert len(drawn) == len(set(drawn)) == 5000


def test_no_pair_comes_twice_or_repeats_one_sentence():
  pairs = [frozenset(pair[1:]) for pair in synthetic.graded_pairs(1200, seed=0)]
  assert len(set(pairs)) == 1200
  assert all(len(pair) == 2 for pair in pairs)


def test_every_grade_from_0_to_5_is_equally_common():
  grades = [grade for grade, _, _ in synthetic.graded_pairs(600, seed=0)]
  assert min(grades) == 0.0
  assert max(grades) == 5.0
  regions = collections.Counter(int(grade + 0.5) for grade in grades)
  assert regions == dict.fromkeys(range(6), 100)


def test_a_paraphrase_scores_5_and_another_topic_0():
  rng = np.random.default_rng(0)
  for _ in range(200):
    meaning = synthetic.draw_meaning(rng, "cooking")
    assert synthetic.similarity(meaning, dataclasses.replace(meaning)) == 5.0
    assert len({synthetic.say(meaning, rng) for _ in range(20)}) > 1
    for topic in synthetic.TOPICS:
      if topic != "cooking":
        other = synthetic.draw_meaning(rng, topic)
        assert synthetic.similarity(meaning, other) == 0.0


def test_a_nearer_or_lighter_change_costs_less():
  chef = synthetic.Concept("cooking", ("chef", "cook"))
  baker = synthetic.Concept("cooking", ("baker",))
  sailor = synthetic.Concept("sea", ("sailor",))
  meaning = synthetic.Meaning(
    agent=chef,
    action=synthetic.Concept("cooking", ("cooked",)),
    object=synthetic.Concept("cooking", ("soup",)),
    time=synthetic.Concept("", ("yesterday",)),
  )

  def score(**slots):
    return synthetic.similarity(meaning, dataclasses.replace(meaning, **slots))

  # Agent, action and object weigh 3 each, time 1: 10 in all. A change within
  # the topic, or a slot left out, loses 0.6 of the weight; others lose all.
  assert score(agent=baker) == pytest.approx(5 * (1 - 0.6 * 3 / 10))
  assert score(agent=sailor) == pytest.approx(5 * (1 - 3 / 10))
  assert score(time=synthetic.Concept("", ("today",))) == pytest.approx(
    5 * (1 - 1 / 10)
  )
  assert score(time=None) == pytest.approx(5 * (1 - 0.6 / 10))


def test_sentences_are_well_formed():
  drawn = synthetic.sentences(3000, seed=1)
  for _, first, second in synthetic.graded_pairs(600, seed=1):
    drawn += [first, second]
  for text in drawn:
    assert re.fullmatch(r"[A-Z][A-Za-z' ,-]*[a-z]\.", text), text
    assert not re.search(r"  | ,|,,|,\.|,(?! )", text), text
    assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
    # Only the language's own singular nouns may follow "a" or "an".
    assert not re.search(r"\b[Aa]n? (the|some|an?)\b", text), text
    assert 5 <= len(text.split()) <= 30, text


def test_plural_objects_take_a_plural_verb():
  text = " ".join(synthetic.sentences(3000, seed=2))
  assert re.search(r"(pancakes|waterfalls|melodies) were ", text)
  assert not re.search(r"(pancakes|crepes|waterfalls|melodies|airs) was ", text)
  assert not re.search(r"(soup|castle|symphony|match) were ", text)
