"""The item environments once more: slow, on strings and lists, with nothing shared with the package.

State: a dict with `values` (the items' only), `row` (item names in their present order), `first` (name or None),
`proved` (set of frozensets of two names), `comparisons` and `swaps`.
"""


def start(values: list[int]) -> dict:
  names = list('ABCDEFGH'[:len(values)])
  return {
      'values': dict(zip(names, values)), 'row': names, 'first': None, 'proved': set(), 'comparisons': 0, 'swaps': 0
  }


def compare(state: dict, action: int) -> tuple[str, bool]:
  """Plays local action `action` on `state`; (text observed, exit)."""
  name = 'ABCDEFGH'[action]
  if name not in state['values'] or name == state['first']:
    return '', False
  if state['first'] is None:
    state['first'] = name
    return ' and', False
  first, state['first'] = state['first'], None
  a, b = state['values'][first], state['values'][name]
  sign = '<' if a < b else '>' if a > b else '='
  state['proved'].add(frozenset([first, name]))
  state['comparisons'] += 1
  return f': {first} {sign} {name}\n', True


def swap(state: dict, action: int) -> tuple[str, bool]:
  name = 'ABCDEFGH'[action]
  if name not in state['values'] or name == state['first']:
    return '', False
  if state['first'] is None:
    state['first'] = name
    return ' and', False
  first, state['first'] = state['first'], None
  row = state['row']
  i, j = row.index(first), row.index(name)
  row[i], row[j] = row[j], row[i]
  state['swaps'] += 1
  return ' => ' + ', '.join(row) + '\n', True


def check(state: dict, action: int) -> tuple[str, bool]:
  if action < 8:
    name = 'ABCDEFGH'[action]
    if state['first'] is None and name in state['values']:
      state['first'] = name
    return '', False
  if state['first'] is None:
    return '', False
  value = state['values'][state['first']]
  state['first'] = None
  if action == 8:
    answer = value < 0
  elif action == 9:
    answer = value > 0
  elif action == 10:
    answer = abs(value) in range(0, 2000, 2)
  else:
    answer = abs(value) in range(1, 2000, 2)
  return f': {answer}\n', True


STEPS = {'compare': compare, 'swap': swap, 'check': check}
