"""A run's wish to stop: SIGTERM, Ctrl-C, and the terminal's end (SIGHUP)."""

import contextlib
import os
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

__all__ = ['StopSignal']


class StopSignal:
  """Turns SIGTERM, SIGINT and SIGHUP into a wish to stop, to be granted after the step in progress.

  The former meaning of SIGTERM and SIGINT returns with the first signal, so that a second ends the program at once;
  SIGHUP comes twice by itself, from the terminal and from its shell. In a run of several processes JAX passes a SIGTERM
  on and names the step after which all stop; the others become one. A program that was started to ignore SIGHUP
  (`nohup`) ignores it still.
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
    self._received = signal.Signals(number).name
    with contextlib.suppress(OSError):  # the terminal may be gone
      print(f'\n{self._received}: saving after this step', file=sys.stderr, flush=True)
    for impatient in {signal.SIGTERM, signal.SIGINT} & set(self._former):
      signal.signal(impatient, self._former.pop(impatient))

  def _pass_on(self, number, frame):
    del number, frame
    os.kill(os.getpid(), signal.SIGTERM)

  def reached(self, step: int) -> bool:
    """Whether to stop now that `step` steps are done."""
    return self._received is not None or multihost_utils.reached_preemption_sync_point(step)
