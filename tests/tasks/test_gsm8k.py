"""GSM8K with other numbers: questions and answers change together, and only where a number's origin is certain."""

from fractions import Fraction
import json
import re

import chex
import numpy as np
import pytest

from earl_jax.config import UserError
from earl_jax.tasks import gsm8k
from tests.tasks.test_calculation import answer_of, score

CLIPS = ('Natalia sold clips to 48 of her friends in April, and 1,200.50 in May. How many did she sell in 3 years?',
         'She sold 48+1200.5=<<48+1200.5=1248.5>>1248.5. Over all that is <<1248.5*3=3745.5>>3745.5.\n#### 3,745.5')


def write(folder, **lines):
  for split in ('train', 'test'):
    records = [json.dumps({'question': CLIPS[0], 'answer': CLIPS[1]})] * 8
    (folder / f'{split}.jsonl').write_text('\n'.join(lines.get(split, records)) + '\n')
  return str(folder)


def test_every_numeral_of_a_value_changes_and_the_answer_with_it():
  item = gsm8k.trace(*CLIPS)
  assert item.numerals == ('48', '1200.50', '3') and item.free == (48, Fraction('1200.5'), 3)
  assert item.operands == ((48, Fraction('1200.5')), (0, 3)) and item.results[-1] == Fraction('3745.5')
  for seed in range(20):
    question, results = gsm8k.rescale(item, np.random.default_rng(seed))
    a, b, c = map(Fraction, re.fullmatch(
        r'Natalia sold clips to (\d+) of her friends in April, and (\d+\.\d\d) in May\. How many did she sell in (\d+) '
        r'years\?', question).groups())
    assert results == [a + b, (a + b) * c]
    assert (a, b, c) != (48, Fraction('1200.5'), 3) and max(a, b, c) < 10**6


@pytest.mark.parametrize('question, answer', [
    ('He has 5 and 7.', 'So <<5+7=13>>13.\n#### 13'),  # the step is wrong
    ('He has 5 and 7.', 'So <<5+7=12>>12.\n#### 11'),  # the answer is not the last result
    ('He has 5, 7 and 12.', 'So <<5+7=12>>12 and <<12-5=7>>7.\n#### 7'),  # which 12?
    ('He has 5 and 7.', 'So <<5+7=12>>12, <<7+5=12>>12, <<12-5=7>>7.\n#### 7'),  # which step?
    ('He has 50% of the 2 halves.', 'So <<50+2=52>>52.\n#### 52'),  # a percentage, and a value that a word names
    ('He has some.', 'So <<5+7=12>>12.\n#### 12'),
    ('He has 5 and 7.', 'No steps.\n#### 12'),
    ('He has 5 and 7.', 'So <<5**7=78125>>78125.\n#### 78125'),
])
def test_doubtful_problems_are_left_out(question, answer):
  assert gsm8k.trace(question, answer) is None


def test_results_stay_of_their_kind():
  item = gsm8k.trace('He cuts 12 m into pieces of 4 m and gives 1 piece away.', 'So <<12/4=3>>3, <<3-1=2>>2.\n#### 2')
  assert item.free == (12, 4, 1)
  for seed in range(50):
    question, results = gsm8k.rescale(item, np.random.default_rng(seed))
    assert all(result.denominator == 1 and result > 0 for result in results), question


def test_task(tmp_path):
  task = gsm8k.GSM8K(write(tmp_path))
  example = task.example(0, 'train', 5)
  chex.assert_trees_all_equal(example, task.example(0, 'train', 5))
  assert example.user.endswith('years? Give the number after ####.')
  assert score(task, example, f'… #### {answer_of(example)}').reward == 1
  assert score(task, example, '#### 3745.5').reward == 0
  assert len({task.example(0, 'train', index).user for index in range(20)}) == 20


@pytest.mark.parametrize('line', ['{"question": "How many?"}', '[1]', '{"question": 1, "answer": 2}', '{"quest', '7'])
def test_a_malformed_line_is_named(tmp_path, line):
  good = json.dumps({'question': CLIPS[0], 'answer': CLIPS[1]})
  with pytest.raises(UserError, match=r'test\.jsonl, line 3: expected .*; download the file again'):
    gsm8k.GSM8K(write(tmp_path, test=[good, good, line]))


def test_missing_files_are_named(tmp_path):
  with pytest.raises(UserError, match=r'nowhere/train\.jsonl cannot be read .*give the folder or URL'):
    gsm8k.GSM8K(str(tmp_path / 'nowhere'))


def test_the_official_files(gsm8k_dir):
  """Most problems survive, and of each its own numbers give its own answer again."""
  items = [item for split in ('train', 'test') for item in gsm8k.read(str(gsm8k_dir), split)]
  rng = np.random.default_rng(0)
  rescaled = 0
  for item in items:
    assert gsm8k._work_out(item, {}) == list(item.results)
    if found := gsm8k.rescale(item, rng):
      rescaled += 1
      assert found[0] != ''.join(piece for pair in zip(item.question, [*item.numerals, '']) for piece in pair)
  assert (len(items), rescaled) >= (6000, 6000)
