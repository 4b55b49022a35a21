"""GSM8K with other numbers: questions and answers change together, and only where a number's origin is certain."""

from fractions import Fraction
import json
import re

import chex
import numpy as np
import pytest

from earl_jax.config import UserError
from earl_jax.tasks import calculation, gsm8k
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
    # Worked out in the head, from numbers that would change.
    ('A lake has 100 ducks, a pond six more than twice as many.', '<<100*2=200>>200; <<206-100=106>>106\n#### 106'),
    ('It cost $4000 and is worth three times as much. What is gained?', '<<12000-4000=8000>>8000\n#### 8000'),
    ('Of 8 dozen glasses 10 broke, and 6 of 4 dozen plates. How many are left?',
     '<<8*12=96>>96; <<4*12=48>>48; <<48-6=42>>42; <<86+42=128>>128\n#### 128'),
    ('He made 13 on the first day and twice that on the next.', '<<13+26=39>>39\n#### 39'),
    # A value that is another kind of numeral too, which does not change.
    ('A 10-hour shift at $10 an hour, and $300 more.', '<<10*10=100>>100; <<100+300=400>>400\n#### 400'),
    ('He eats 20% of 20 apples and 7 pears.', '<<20*.2=4>>4; <<4+7=11>>11\n#### 11'),
    ('He eats 1/4 of 40 apples and 4 pears.', '<<40/4=10>>10; <<10+4=14>>14\n#### 14'),
    ('He eats 50% of 16 apples and 2 pears.', '<<16/2=8>>8; <<8+2=10>>10\n#### 10'),  # 2 = 100 / 50
    ('It takes until 5:30, and 30 more.', '<<30+30=60>>60\n#### 60'),
    # A result that a word says too; a count that is a quantity too.
    ('A dozen eggs, and 9 and 3 more.', '<<9+3=12>>12; <<12+12=24>>24\n#### 24'),
    ('They had 3, 5 and 4 pounds. What is the average?', '<<3+5+4=12>>12; <<12/3=4>>4\n#### 4'),
    # A quantity, or a result, that nothing is worked out from.
    ('Of 18 things he sells 7 books and 11 pens.', '<<7*11=77>>77\n#### 77'),
    ('He pays 45 + 22 in one shop, 34 + 20 in the other. What is cheaper?', '<<45+22=67>>67; <<34+20=54>>54\n#### 54'),
    ('He has 15 and 40.', '<<15=15>>15; <<15+40=55>>55\n#### 55'),
    ('He has 1,000,000 and 7.', '<<1000000+7=1000007>>1000007\n#### 1000007'),  # seven digits: no larger one fits
])
def test_doubtful_problems_are_left_out(question, answer):
  assert gsm8k.trace(question, answer) is None


def test_results_stay_of_their_kind():
  item = gsm8k.trace('He cuts 12 m into pieces of 4 m and gives 1 piece away.', 'So <<12/4=3>>3, <<3-1=2>>2.\n#### 2')
  assert item.free == (12, 4)  # 1 is always said
  for seed in range(50):
    question, results = gsm8k.rescale(item, np.random.default_rng(seed))
    assert all(result.denominator == 1 and result > 0 for result in results), question


def test_what_does_not_change_stays():
  """Percentages and what comes of them, hyphenated numbers, times, rates of days, labels, words and units."""
  question = ('From 7 a.m. on day 2 she works a 10-hour shift, 5 days a week, at $8.50 an hour, 25% less in half '
              'of the 16 weeks, with 3 eggs.')
  item = gsm8k.trace(question, '10*5=<<10*5=50>>50; <<50*8.5=425>>425; <<425*.75=318.75>>; <<318.75*16/2=2550>>; '
                               '<<2550+3=2553>>2553\n#### 2553')
  assert item.free == (Fraction('8.5'), 16, 3)
  text = re.escape(question).replace(r'8\.50', r'(\d+\.\d\d)').replace('16', r'(\d+)').replace('3', r'(\d+)')
  for seed in range(20):
    question, results = gsm8k.rescale(item, np.random.default_rng(seed))
    rate, weeks, eggs = map(Fraction, re.fullmatch(text, question).groups())
    assert results[-1] == 50 * rate * Fraction('.75') * weeks / 2 + eggs


def test_numbers_keep_their_order():
  """Else 654 were sold, 4000 more than last year."""
  item = gsm8k.trace('He sold 327, 50 more than last year, and loses 3 of each 50.', '<<327+50=377>>; <<377-3=374>>'
                     '\n#### 374')
  for seed in range(20):
    sold, more, lost, each = map(int, re.findall(r'\d+', gsm8k.rescale(item, np.random.default_rng(seed))[0]))
    assert sold > more == each > lost


def test_task(tmp_path):
  task = gsm8k.GSM8K(write(tmp_path))
  example = task.example(0, 'train', 5)
  chex.assert_trees_all_equal(example, task.example(0, 'train', 5))
  assert example.user.endswith('years? Give the number after ####.')
  assert score(task, example, f'… #### {answer_of(example)}').reward == 1
  assert score(task, example, '#### 3745.5').reward == 0
  assert len({task.example(0, 'train', index).user for index in range(20)}) == 20


def test_files_of_which_nothing_can_be_made(tmp_path, monkeypatch):
  """Whatever the one item is multiplied by has too many digits."""
  monkeypatch.setattr(calculation, 'DRAWS', 3)
  large = json.dumps({'question': 'He had 999999 and lost 999998. How many?',
                      'answer': '<<999999-999998=1>>\n#### 1'})
  task = gsm8k.GSM8K(write(tmp_path, train=[large], test=[large]))
  with pytest.raises(UserError, match="task gsm8k.: no problem of split 'train' in 3 draws; give it other options"):
    task.example(0, 'train', 0)


def test_a_byte_order_mark_and_blank_lines(tmp_path):
  good = json.dumps({'question': CLIPS[0], 'answer': CLIPS[1]})
  folder = write(tmp_path, train=['\ufeff' + good, '', good, ''])
  assert len(gsm8k.read(folder, 'train')) == 2


@pytest.mark.parametrize('line', ['{"question": "How many?"}', '[1]', '{"question": 1, "answer": 2}', '{"quest', '7'])
def test_a_malformed_line_is_named(tmp_path, line):
  good = json.dumps({'question': CLIPS[0], 'answer': CLIPS[1]})
  with pytest.raises(UserError, match=r'test\.jsonl, line 3: expected .*; download the file again'):
    gsm8k.GSM8K(write(tmp_path, test=[good, good, line]))


def test_lines_end_at_line_feeds_and_are_utf8(tmp_path):
  """Other separators of lines may stand within strings."""
  odd = [json.dumps({'question': f'Zoé\u2028has\x85{CLIPS[0]}', 'answer': CLIPS[1]}, ensure_ascii=False)] * 3
  folder = write(tmp_path)
  (tmp_path / 'test.jsonl').write_bytes('\r\n'.join(odd).encode())
  assert gsm8k.GSM8K(folder).example(0, 'test', 0).user.startswith('Zoé\u2028has\x85Natalia')
  (tmp_path / 'train.jsonl').write_bytes('\n'.join(odd).encode('latin-1', 'replace'))
  gsm8k.read.cache_clear()
  with pytest.raises(UserError, match=r'train\.jsonl cannot be read .*utf-8'):
    gsm8k.GSM8K(folder)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(UserError, match=r'nowhere/train\.jsonl cannot be read .*give the folder or URL'):
    gsm8k.GSM8K(str(tmp_path / 'nowhere'))


def test_the_official_files(gsm8k_dir):
  """Two in five survive, and of each its own numbers give its own answer again."""
  items = [item for split in ('train', 'test') for item in gsm8k.read(str(gsm8k_dir), split)]
  rng, tried, rescaled = np.random.default_rng(0), items[::20], 0
  assert all(gsm8k._work_out(item, {}) == list(item.results) for item in items)
  for item in tried:
    if found := gsm8k.rescale(item, rng):
      rescaled += 1
      assert found[0] != ''.join(piece for pair in zip(item.question, [*item.numerals, '']) for piece in pair)
  assert 3800 <= len(items) <= 4000 and rescaled >= 0.9 * len(tried)
