"""Mistakes of users, in one line."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import sysconfig
import traceback

PACKAGE = pathlib.Path(__file__).parents[1]


class UserError(Exception):
  """A mistake that the user can fix. Entry points print its one line and exit with status 2, without a traceback."""


def first_line(error: Exception) -> str:
  """What an exception of another library says, in one line that is not too long."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def one_line(error: BaseException) -> str:
  """What an exception of somebody else's program is and says, in one line that is not too long."""
  return f'{type(error).__name__}: {" ".join(str(error)[:200].split())}'


def described(error: Exception) -> str:
  """What went wrong in somebody's program, with the last line of code of theirs that it went through."""
  if isinstance(error, SyntaxError):
    return f'{error.filename}, line {error.lineno}: {error.msg}'
  text = ' '.join(str(error).split())
  if isinstance(error, UserError):
    return text
  frames = traceback.extract_tb(error.__traceback__)
  frame = ([frame for frame in frames if not _of_a_library(frame.filename)] or frames)[-1]
  return f'{frame.filename}, line {frame.lineno}: {type(error).__name__}: {text}'


@contextlib.contextmanager
def as_user_error(where: str) -> Iterator[None]:
  """Whatever is raised within, in somebody's program, becomes a UserError that begins with `where`."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    raise UserError(f'{where}: {described(error)}') from error


def _of_a_library(filename: str) -> bool:
  """Python's own, what is installed, this package; and what has no path, such as compiled code."""
  folders = [sysconfig.get_path(name) for name in ('stdlib', 'purelib', 'platlib')] + [str(PACKAGE)]
  return not os.path.isabs(filename) or any(filename.startswith(folder + os.sep) for folder in folders)
