"""TensorBoard's event files, written where one stands.

The SummaryWriter of tensorboardX hands events to a thread. On a full disk that thread ends, and the run then waits for
ever to hand over the next event.
"""

import os
import time

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

__all__ = ['EventFile']

FLUSH_SECONDS = 30.0  # a flush waits for the disk


class EventFile:
  """The events of one run from a step on; what an earlier start wrote of later steps is hidden."""

  def __init__(self, workdir: str | os.PathLike, first_step: int):
    self._writer = EventsWriter(os.path.join(workdir, 'events'))
    self._flushed = time.monotonic()
    self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

  def add(self, summary: Summary, step: int) -> None:
    """Writes what a function of `tensorboardX.summary` gives; raises OSError where there is no room for it."""
    self._write(Event(step=step, summary=summary))
    if time.monotonic() - self._flushed > FLUSH_SECONDS:
      self._writer.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    self._writer.close()

  def _write(self, event: Event) -> None:
    event.wall_time = time.time()
    self._writer.write_event(event)
