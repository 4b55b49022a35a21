"""What the entry points share: flags, errors that a user can fix, and the set-up of JAX."""

from collections.abc import Callable, Iterator, Sequence
import errno
import gc
import math
import os
import pathlib
import re
import runpy
import signal
import sys
import threading
import traceback
from typing import Any

from absl import flags, logging
import jax
import ml_collections
from ml_collections import config_flags

from earl_jax import config as config_lib
from earl_jax import finder
from earl_jax.config import Config, UserError
from earl_jax.run.cli_help import help_text, nearest_field

__all__ = ['define_config', 'parse_flags', 'prepare_jax', 'read_config', 'start']

# Errors that a disk, a folder or the user's rights may cause, whatever is written there.
STORAGE = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOSPC, errno.ENOTDIR,
    errno.EPERM, errno.EROFS, errno.ESTALE,
}

# Settings of JAX that must not differ: states are saved in 32 bits, and libraries rely on promotion.
NEEDED = {'jax_enable_x64': False, 'jax_numpy_rank_promotion': 'allow', 'jax_numpy_dtype_promotion': 'standard'}


MOST_DEVICES = 256  # that a CPU pretends to have
MOST_CORES = 4  # that are devices of their own, unless more are asked for


def start(
    main: Callable[[flags.FlagValues], int | None],
    define_flags: Callable[[flags.FlagValues, list[str]], None],
    argv: Sequence[str] | None = None,
) -> int:
  """Runs an entry point and gives its exit status: that of `main`, or 2 after one line on what the user can fix.

  Args:
    main: takes the parsed flags; no status is status 0.
    define_flags: adds the program's flags to the FlagValues it gets; the list is `argv`.
    argv: program name and arguments; those of the process by default. It then ends here after an error: threads that
      still wait for a disk or for other processes would hold it up for minutes.
  """
  if argv is None:
    # Tracing makes millions of objects that stay: to look for garbage among them took a tenth of the first step.
    gc.freeze()
    gc.set_threshold(50_000)
  try:
    return _run(main, define_flags, list(sys.argv if argv is None else argv))
  except UserError as error:
    told, status = ' '.join(f'error: {error}'.splitlines()), 2  # one line, whatever a value has in it
  except OSError as error:
    if error.errno not in STORAGE:
      raise
    told, status = f'error: {error.filename or "writing"}: {error.strerror}; fix that, then run the command again', 2
  except KeyboardInterrupt:
    told, status = 'interrupted', 128 + signal.SIGINT
  print(told, file=sys.stderr, flush=True)
  if argv is None:
    sys.stdout.flush()
    os._exit(status)
  return status


def _run(
    main: Callable[[flags.FlagValues], int | None],
    define_flags: Callable[[flags.FlagValues, list[str]], None],
    argv: list[str],
) -> int:
  logging.set_verbosity(logging.WARNING)
  logging.get_absl_logger().addFilter(_is_logged)
  sys.unraisablehook = _tell_own_errors
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')  # a path or a text need not fit the terminal's encoding
  values = flags.FlagValues()
  argv = [_at_home(argument) for argument in argv]
  for argument in argv[1:]:  # first of all: a config file that is a flag's default is changed by them at once
    _check_field(argument)
  define_flags(values, argv)
  flags.DEFINE_bool('help', False, 'Show this text.', short_name='h', flag_values=values)
  if {'--help', '-help', '-h'} & set(argv[1:]):
    print(help_text(sys.modules[main.__module__].__doc__, values))
    return 0
  parse_flags(values, argv)
  return main(values) or 0


def _is_logged(record: Any) -> bool:
  """Whether a record is logged: what Orbax's threads log of an error is also raised, and then told in one line."""
  return not ('orbax' in record.pathname and record.levelname in ('ERROR', 'CRITICAL'))


def _tell_own_errors(unraisable: Any) -> None:
  """Leaves out what TensorStore's threads cannot raise: after an error nobody waits for them any more."""
  if threading.current_thread() is threading.main_thread():
    sys.__unraisablehook__(unraisable)


def define_config(values: flags.FlagValues, argv: list[str], default: str | None = None) -> None:
  """Adds --config and --config.<field>.

  As Python does for a script, what lies beside a config file can be imported by it, and tasks be found there.
  """
  paths = [path for path in (_config_path(argv), (default or '').partition(':')[0]) if path]
  finder.look_in([str(pathlib.Path(path).resolve().parent) for path in paths])
  try:
    config_flags.DEFINE_config_file(
        'config', default, 'The config file. Any field of it can be set, as --config.optimizer.learning_rate=1e-4.',
        flag_values=values, sys_argv=argv,
    )
  except Exception as error:  # a default is parsed at once
    raise UserError(_describe(error, argv)) from None


def parse_flags(values: flags.FlagValues, argv: list[str]) -> None:
  """Parses `argv` into `values`.

  Raises:
    UserError: an unknown argument, a value of the wrong type, a config file that fails.
  """
  try:
    rest = values(argv)[1:]
    if 'config' in values:
      hasattr(values.config, 'steps')  # raises what the file has raised of the system's, which is kept back till then
  except Exception as error:  # a config file is a program: it can raise anything
    raise UserError(_describe(error, argv)) from None
  if rest:
    raise UserError(f'{rest[0]!r}: unexpected argument; write flags as --name=value, see --help')


def _check_field(argument: str) -> None:
  """Raises UserError if `argument` sets a config field that does not exist."""
  flag = argument.partition('=')[0]
  if not flag.lstrip('-').startswith('config.'):
    return
  node, where = config_lib.default_config(), 'config'
  for name in flag.split('.')[1:]:
    if '[' in name:  # what is inside, such as curriculum[0].until, only the config file knows
      return
    if not hasattr(node, 'keys') or name not in node:
      known = f'{where} has the fields {", ".join(node)}' if hasattr(node, 'keys') else f'{where} has no fields'
      meant = nearest_field(name, where.removeprefix('config').lstrip('.'))
      raise UserError(f'{argument}: no field {name!r}; {f"did you mean --config.{meant}?" if meant else known}')
    node, where = node[name], f'{where}.{name}'


def _describe(error: BaseException, argv: list[str]) -> str:
  """What went wrong while the flags were parsed, with the line of the user's config file if it began there."""
  flag = next((a for a in argv if a.lstrip('-').startswith('config=')), '--config')
  path = _config_path(argv)
  if isinstance(error, OSError):
    if not os.path.isfile(path):
      return f'{flag}: no such file; give the path of a config file'
    error = _error_while_read(path) or error
  for cause in _causes(error):
    if isinstance(cause, SyntaxError):
      return f'{cause.filename}, line {cause.lineno}: {(cause.text or "").strip()}: {cause.msg}'
    frames = traceback.extract_tb(cause.__traceback__)
    inside = [frame for frame in frames if path and os.path.abspath(frame.filename) == os.path.abspath(path)]
    if inside:
      return f'{path}, line {inside[-1].lineno}: {inside[-1].line}: {_one_line(cause)}'
  if "has no attribute 'get_config'" in str(error):
    return f'{flag}: it defines no get_config(); define it so that it returns a config'
  return _one_line(error) if isinstance(error, flags.Error) else f'{flag}: {_one_line(error)}'


def _at_home(argument: str) -> str:
  """--config=~/… with the user's home: the shell leaves it, for it stands within a word."""
  flag, equals, value = argument.partition('=')
  return f'{flag}={os.path.expanduser(value)}' if flag.lstrip('-') == 'config' and equals else argument


def _error_while_read(path: str) -> Exception | None:
  """What a config file raises while it is read: config_flags takes any file that is not found for the config file."""
  try:
    runpy.run_path(path)
  except Exception as error:
    return error
  return None


def _config_path(argv: Sequence[str]) -> str:
  """The file that --config names, without what comes after the colon; '' if there is none."""
  values = [argument.partition('=')[2] for argument in argv if argument.lstrip('-').startswith('config=')]
  values += [value for flag, value in zip(argv, argv[1:]) if flag in ('--config', '-config')]
  return values[0].partition(':')[0] if values else ''


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  """`error` and what it came from, the first cause first."""
  if error is not None:
    yield from _causes(error.__cause__ or error.__context__)
    yield error


def _one_line(error: BaseException) -> str:
  text = ' '.join(str(error).split())
  if unknown := re.search(r'Key "([^"]*)" does not exist', text):  # ml_collections goes on to show all others
    meant = re.search(r'Did you mean "([^"]*)"', text)
    return f'no field {unknown[1]!r}' + (f'; did you mean {meant[1]!r}?' if meant else '; see --help')
  return text if isinstance(error, (flags.Error, UserError)) else f'{type(error).__name__}: {text}'


def read_config(values: flags.FlagValues) -> tuple[pathlib.Path, Config]:
  """The file that --config names, and what it says.

  Raises:
    UserError: no such file, or an impossible config.
  """
  if not values['config'].present:
    raise UserError('--config is missing; give a config file, such as --config=configs/sort4.py')
  path = pathlib.Path(config_flags.get_config_filename(values['config']).partition(':')[0])
  if not path.is_file():
    raise UserError(f'--config={path}: no such file; give the path of a config file')
  if not isinstance(values.config, ml_collections.ConfigDict):
    raise UserError(f'--config={path}: get_config() returned no ConfigDict; return earl_jax.config.default_config()')
  return path, config_lib.parse(values.config)


def prepare_jax(config: Config) -> None:
  """Sets JAX up for a run. Has an effect only before JAX is first used.

  - A CPU becomes as many devices as `_cpu_devices` says. XLA_FLAGS in the environment is left alone.
  - Compiled programs are kept in the user's cache folder, so that a second start is fast. JAX_COMPILATION_CACHE_DIR
    chooses another place.
  - Settings of the environment that these programs cannot run under have no effect.
  """
  for name, value in NEEDED.items():
    jax.config.update(name, value)
  if 'XLA_FLAGS' not in os.environ:
    os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={_cpu_devices(config)}'
  if jax.config.jax_compilation_cache_dir is None:
    cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
    jax.config.update('jax_compilation_cache_dir', str(cache / 'earl_jax' / 'jax'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)  # small programs are many


def _cpu_devices(config: Config) -> int:
  """How many devices a CPU is: as many as the numbers in `config.mesh` ask for.

  With the embedded model, where `config.mesh.data` leaves it open, the cores there are: its operations are too small to
  be shared out over threads, and decoding keeps one core busy, whatever there are. Of a larger model there is one
  device, with threads of its own: another would have another copy of all parameters.
  """
  mesh = config.mesh
  asked = min(math.prod(size for size in (mesh.data, mesh.fsdp, mesh.tensor) if size > 0), MOST_DEVICES)
  if config.model != 'embedded' or mesh.data != -1:
    return asked
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  fitting = [n for n in range(1, min(cores, MOST_CORES) // asked + 1) if config.shared_rows % (n * mesh.fsdp) == 0]
  return asked * max(fitting, default=1)
