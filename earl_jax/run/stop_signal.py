"""A run's wish to stop: SIGTERM, Ctrl-C, and the terminal's end (SIGHUP)."""

import errno
import os
import signal
import sys
import termios
import threading

import jax
from jax.experimental import multihost_utils

__all__ = ['StopSignal']


class StopSignal:
  """Turns SIGTERM, SIGINT and SIGHUP into a wish to stop, to be granted after the step in progress.

  The signals' former meaning returns with the first one, so that a second ends the program at once. In a run of
  several processes JAX passes a SIGTERM on and names the step after which all stop; the others become one. A program
  that was started to ignore SIGHUP (`nohup`) ignores it still.
  """

  def __init__(self):
    self._received, self._former = None, {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      numbers, handler = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}, self._receive
      if jax.process_count() > 1:
        numbers, handler = {signal.SIGINT, signal.SIGHUP}, self._pass_on
      if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        numbers.discard(signal.SIGHUP)
      self._former = {number: signal.signal(number, handler) for number in numbers}
    return self

  def __exit__(self, *_):
    while self._former:
      signal.signal(*self._former.popitem())

  def _receive(self, number, frame):
    del frame
    _drop_lost_terminal()
    self._received = signal.Signals(number).name
    print(f'\n{self._received}: saving after this step', file=sys.stderr, flush=True)
    self.__exit__()

  def _pass_on(self, number, frame):
    del number, frame
    _drop_lost_terminal()
    os.kill(os.getpid(), signal.SIGTERM)

  def reached(self, step: int) -> bool:
    """Whether to stop now that `step` steps are done."""
    return self._received is not None or multihost_utils.reached_preemption_sync_point(step)


def _drop_lost_terminal() -> None:
  """Sends what is written to a terminal that is gone to nowhere: else the next line of progress would end the run."""
  for stream in (1, 2):
    try:
      termios.tcgetattr(stream)
    except termios.error as error:
      if error.args[0] == errno.EIO:  # a file or a pipe says ENOTTY
        with open(os.devnull, 'wb') as nowhere:
          os.dup2(nowhere.fileno(), stream)
