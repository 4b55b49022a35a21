"""The fuzzer counts what it finds and goes on where it was; and what it plays in large numbers, in small ones."""

import json

import pytest

from tests import benchmark


@pytest.fixture(scope='module')
def fuzz():
  return benchmark.load('fuzz')


def test_a_row_is_resumed_and_counts_what_it_finds(fuzz, tmp_path, monkeypatch, capsys):
  seen = []

  def check(number):
    seen.append(number)
    fuzz.require(number != 3, 'a fault')
    if number == 4:
      raise ValueError('one\ntwo')

  monkeypatch.setitem(fuzz.ROWS, 'row', ({'case': lambda name: check}, 100, 1))
  for count in (4, 8):
    state = fuzz.run('row', 'case', count, tmp_path)
  assert seen == list(range(8)) and state['count'] == 8
  assert state['exceptions'] == 2 and state['found'] == ['Wrong: a fault', 'ValueError: one two']
  assert json.loads((tmp_path / 'fuzz_row_case.json').read_text()) == state
  assert 'row case 3: Wrong: a fault' in capsys.readouterr().err


def test_hostile_folders_are_what_their_number_says(fuzz, tmp_path):
  contents = []
  for place, number in enumerate((5, 5, 6)):
    (tmp_path / str(place)).mkdir()
    fuzz.write_hostile(tmp_path / str(place), 0, number)
    contents.append({path.name: path.read_bytes() for path in (tmp_path / str(place)).iterdir() if path.is_file()})
  assert contents[0] == contents[1] != contents[2]


@pytest.mark.slow
@pytest.mark.parametrize('row, count', [('actions', 2000), ('interfaces', 2000), ('texts', 60), ('folders', 60)])
def test_nothing_but_user_error_comes_out(fuzz, row, count, tmp_path):
  for name in fuzz.ROWS[row][0]:
    assert not fuzz.run(row, name, count, tmp_path)['found']
