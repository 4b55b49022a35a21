"""What --help prints, and which name was probably meant."""

import difflib
import textwrap

from absl import flags
import ml_collections

from earl_jax import config as config_lib

__all__ = ['help_text', 'nearest_field']

WIDTH = 100
CLOSE = 0.7  # of difflib's ratio


def help_text(doc: str, values: flags.FlagValues) -> str:
  """A program's help: what it does and its command, its flags in groups, then the rest of its docstring.

  Args:
    doc: the program's docstring: one line, an empty one, the command, and what else there is to say.
    values: its flags; those that absl adds to every program are left out.
  """
  summary, command, *rest = doc.strip().split('\n\n')
  ours = [flag for module, found in values.flags_by_module_dict().items() if module != 'absl.flags' for flag in found]
  required = [flag for flag in ours if any('must have a value' in check.message for check in flag.validators)]
  config = [flag for flag in ours if flag.name == 'config']
  options = [flag for flag in ours if flag not in required + config]
  parts = [summary, command]
  for title, group in (('Required', required), ('Config', config), ('Options', options)):
    if group:
      lines = [line for flag in sorted(group, key=_order) for line in _entry(_usage(flag), _meaning(flag))]
      parts.append('\n'.join([f'{title}:', *lines, *(_fields() if title == 'Config' else ())]))
  return '\n\n'.join(parts + rest)


def nearest_field(name: str, group: str) -> str:
  """The config field, dotted, whose own name is most like `name`; '' if none is. Those of `group` come first."""
  own = [(field.rpartition('.')[2], field) for field in _dotted(config_lib.default_config())]
  own.sort(key=lambda pair: pair[1] != f'{group}.{pair[0]}'.lstrip('.'))
  meant = difflib.get_close_matches(name, [end for end, _ in own], n=1, cutoff=CLOSE)
  return next((field for end, field in own if end in meant), '')


def _dotted(node: ml_collections.ConfigDict, prefix: str = '') -> list[str]:
  names = []
  for name, value in node.items():
    names.append(prefix + name)
    if isinstance(value, ml_collections.ConfigDict):
      names += _dotted(value, f'{prefix}{name}.')
  return names


def _fields() -> list[str]:
  """The names of the fields that a flag can set, group by group."""
  config = config_lib.default_config()
  groups = {name: value for name, value in config.items() if isinstance(value, ml_collections.ConfigDict)}
  lines = _entry('--config.FIELD=VALUE', ', '.join(name for name in config if name not in {'curriculum', *groups}))
  for name, group in groups.items():
    lines += _entry(f'--config.{name}.FIELD=VALUE', ', '.join(group))
  return lines


def _order(flag: flags.Flag) -> tuple[bool, str]:
  return flag.name == 'help', flag.name


def _usage(flag: flags.Flag) -> str:
  return f'--{flag.name}' if flag.boolean else f'--{flag.name}={flag.name.upper()}'


def _meaning(flag: flags.Flag) -> str:
  shown = flag.default not in (None, [], '', False)
  return flag.help + (f' (default: {flag.default})' if shown else '')


def _entry(left: str, right: str) -> list[str]:
  """Two columns; a left side that is too wide has a line of its own."""
  column = 28
  lines = textwrap.wrap(right, WIDTH - column, break_on_hyphens=False) or ['']
  if len(left) > column - 4:
    lines.insert(0, '')
  return [f'  {head:{column - 2}}{line}'.rstrip() for head, line in zip([left] + [''] * len(lines), lines)]
