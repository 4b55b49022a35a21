"""Lists the programs of this package: `python -m earl_jax`."""

import ast
import difflib
import pathlib
import re
import sys


def programs() -> dict[str, str]:
  """Name -> what it does, in a line. Sources are read, not imported, which takes seconds."""
  found = {}
  for path in sorted(pathlib.Path(__file__).parent.glob('[!_]*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    if isinstance(tree.body[-1], ast.If):  # if __name__ == '__main__'
      found[path.stem] = re.split(r'[:.]', ast.get_docstring(tree))[0]
  return found


def main(arguments: list[str]) -> int:
  found = programs()
  if not arguments:
    rows = '\n'.join(f'  python -m earl_jax.{name:10} {line}' for name, line in found.items())
    print(f'The programs of earl_jax. Each tells more with --help.\n\n{rows}')
    return 0
  name, *rest = arguments
  meant = difflib.get_close_matches(name, found, 1)
  remedy = ' '.join([f'write python -m earl_jax.{meant[0]}', *rest]) if meant else f'choose one of {", ".join(found)}'
  print(f'error: {name!r} is no argument here; {remedy}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
