"""A run's wish to stop: SIGTERM and Ctrl-C."""

import os
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

__all__ = ['StopSignal']


class StopSignal:
  """Turns SIGTERM and SIGINT into a wish to stop, to be granted after the step in progress.

  The signal's former meaning returns with the first one, so that a second ends the program at once. In a run of
  several processes JAX passes a SIGTERM on and names the step after which all stop; a SIGINT becomes one.
  """

  def __init__(self):
    self._received, self._former = None, {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      handlers = {signal.SIGTERM: self._receive, signal.SIGINT: self._receive}
      if jax.process_count() > 1:
        handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
      self._former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    return self

  def __exit__(self, *_):
    while self._former:
      signal.signal(*self._former.popitem())

  def _receive(self, number, frame):
    del frame
    self._received = signal.Signals(number).name
    print(f'\n{self._received}: saving after this step', file=sys.stderr, flush=True)
    self.__exit__()

  def reached(self, step: int) -> bool:
    """Whether to stop now that `step` steps are done."""
    return self._received is not None or multihost_utils.reached_preemption_sync_point(step)
