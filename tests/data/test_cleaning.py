"""What cleaning changes, in any script, and what it leaves out."""

import hypothesis
from hypothesis import strategies as st
import pytest

from dcse_jax.data import cleaning
from dcse_jax.data import text


@pytest.mark.parametrize(
  "raw, cleaned",
  [
    ("  A  cat\t sleeps.\r", "A cat sleeps."),
    ("cafe\u0301", "caf\u00e9"),  # One word in both spellings.
    ("\u1112\u1161\u11ab", "\ud55c"),
    ("a\x00b\x07c\x1b[0m\x85d", "a b c [0m d"),
    ("zero\u200bwidth, soft\u00adhyphen\ufeff", "zerowidth, softhyphen"),
    ("\u202bשלום\u202c\u200f", "שלום"),
    # A joiner that Persian needs, and one that emoji need.
    ("می\u200cخواهم 👨\u200d👩", "می\u200cخواهم 👨\u200d👩"),
    ("全角\u3000空白\u00a0", "全角 空白"),
  ],
)
def test_a_sentence_is_cleaned_in_any_script(raw, cleaned):
  assert cleaning.clean(raw) == cleaned


@pytest.mark.parametrize(
  "sentence, why",
  [
    ("A cat sleeps.", ""),
    ("猫在窗台上睡了一整天。", ""),
    ("बिल्ली खिड़की पर सो रही है।", ""),  # Its vowels are marks, not letters.
    ("แมวนอนหลับอยู่ที่หน้าต่าง", ""),
    ("القطة نائمة على النافذة.", ""),
    ("", "blank"),
    ("An old caf\ufffd in town.", "lost_characters"),
    ("A cat.", "too_short"),
    ("A cat sleeps. " * 3, "too_long"),
    ("12 345 | 67 890 | x", "hardly_letters"),
    ("abcd 12345 - ab", ""),  # Six letters of twelve are half.
    ("abcd 12345 -- a", "hardly_letters"),
    ("------------", "hardly_letters"),
    ("👍👍👍👍👍 👍👍👍👍 so", "hardly_letters"),
  ],
)
def test_what_is_no_sentence_is_left_out_by_the_first_rule_that_says_so(sentence, why):
  assert cleaning.fault(sentence, cleaning.Rules(10, 40)) == why


def test_bounds_are_counted_in_characters_not_in_bytes():
  sentence = "猫" * 10
  assert not cleaning.fault(sentence, cleaning.Rules(10, 10))
  assert cleaning.fault(sentence, cleaning.Rules(11, 20)) == "too_short"
  assert cleaning.fault(sentence, cleaning.Rules(1, 9)) == "too_long"


odd = st.sampled_from(
  " \t\v\0\x07\x1c\x85\xa0\u2028\u200b\u200d\u0301\u0323\ufeffea日😀"
)


@hypothesis.settings(max_examples=100, derandomize=True, deadline=None, database=None)
@hypothesis.given(st.text(odd | st.characters(exclude_categories=["Cs"]), max_size=15))
def test_to_clean_again_or_to_read_for_training_changes_nothing(sentence):
  cleaned = cleaning.clean(sentence)
  assert cleaning.clean(cleaned) == cleaned
  assert text.clean(cleaned) == cleaned
  assert "\n" not in cleaned
