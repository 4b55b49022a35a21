"""Threads that make calls, each within a limit of time, and no more of them than a bound."""

import collections
from collections.abc import Callable, Sequence
import threading
import time
from typing import Any

__all__ = ['NoThread', 'Pool', 'STUCK']

STUCK = 512  # threads past their limit, from which on no new ones are started
IDLE = 10.0  # seconds without a call after which a thread ends


class NoThread(TimeoutError):
  """A call was not made: all threads are held by calls that do not return."""


class _Job:
  """A call of a batch. `began` in seconds of the monotonic clock; `result` is its value or what it raised."""

  __slots__ = ('batch', 'began', 'call', 'result')

  def __init__(self, batch: 'Batch', call: Callable[[], Any]):
    self.batch, self.call = batch, call
    self.began, self.result = 0.0, None


class Batch:
  """Calls that were handed in together."""

  def __init__(self, calls: Sequence[Callable[[], Any]]):
    """Begins with all of them open."""
    self.jobs = [_Job(self, call) for call in calls]
    self.open = len(self.jobs)


class Pool:
  """Calls in threads, `size` at a time.

  Nothing can end a thread of Python. One that is past its limit is left alone: its call is given up, what it may still
  bring is dropped, it ends once it returns, and another takes its place. With `STUCK` of them none is replaced any
  more; with no thread left calls are given up at once, until one of the stuck returns. So there are never more than
  `size + STUCK` threads, and a batch takes at most `seconds` for every `size` of its calls while threads are replaced.
  They are daemons: none holds up the end of the program. Limits hold for calls that release the interpreter's lock, as
  whatever waits does; a loop inside one C function that keeps it holds up everything.
  """

  def __init__(self, size: int, seconds: float):
    """Starts no thread yet."""
    self._size, self._seconds = size, seconds
    lock = threading.Lock()
    self._more, self._done = threading.Condition(lock), threading.Condition(lock)
    self._waiting: collections.deque[_Job] = collections.deque()
    self._running: set[_Job] = set()
    self._threads = self._stuck = 0

  def submit(self, calls: Sequence[Callable[[], Any]]) -> Batch:
    """Hands in calls, to be collected once."""
    batch = Batch(calls)
    with self._more:
      self._waiting.extend(batch.jobs)
      self._hire()
      self._more.notify(len(calls))
    return batch

  def collect(self, batch: Batch) -> list[Any]:
    """What the calls of a batch gave, in order: a value, the exception it raised, or a TimeoutError."""
    with self._done:
      while batch.open:
        self._give_up(time.monotonic() - self._seconds)
        if batch.open:
          first = min((job.began for job in self._running), default=time.monotonic())
          self._done.wait(max(first + self._seconds - time.monotonic(), 0.001))
    return [job.result for job in batch.jobs]

  def _give_up(self, since: float) -> None:
    """Gives up what runs since then or longer, and what waits where no thread is left for it."""
    for job in [job for job in self._running if job.began <= since]:
      self._running.remove(job)
      self._threads, self._stuck = self._threads - 1, self._stuck + 1
      self._close(job, TimeoutError(f'it takes longer than {self._seconds} s'))
    self._hire()
    while self._waiting and not self._threads:
      self._close(self._waiting.popleft(), NoThread('no thread is left, because earlier calls do not return'))

  def _hire(self) -> None:
    """Starts threads for what waits."""
    wanted = min(self._size, len(self._running) + len(self._waiting))
    while self._threads < wanted and self._stuck < STUCK:
      try:
        threading.Thread(target=self._work, daemon=True, name='host environment').start()
      except RuntimeError:  # the system has no more
        return
      self._threads += 1

  def _work(self) -> None:
    """Makes calls until one of them is past its limit, or none come."""
    while True:
      with self._more:
        while not self._waiting:
          if not self._more.wait(IDLE) and not self._waiting:
            self._threads -= 1
            return
        job = self._waiting.popleft()
        job.began = time.monotonic()
        self._running.add(job)
      try:
        result = job.call()
      except BaseException as error:  # whatever it is, it ends no thread and no run
        result = error
      with self._more:
        if job not in self._running:
          self._stuck -= 1
          return
        self._running.remove(job)
        self._close(job, result)

  def _close(self, job: _Job, result: Any) -> None:
    job.result = result
    job.batch.open -= 1
    if not job.batch.open:
      self._done.notify_all()
