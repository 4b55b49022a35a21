"""Calls in threads: values, errors, limits of time, and how many threads there ever are."""

import functools
import threading
import time

import pytest

from earl_jax.environments import threads
from earl_jax.environments.threads import NoThread, Pool


def leave():
  raise SystemExit


def run(pool, *calls):
  return pool.collect(pool.submit(calls))


@pytest.fixture
def started():
  """Counts the threads that are alive of those started since."""
  before = set(threading.enumerate())
  return lambda: len(set(threading.enumerate()) - before)


def all_end(started):
  deadline = time.monotonic() + 5
  while started() and time.monotonic() < deadline:
    time.sleep(0.01)
  return not started()


def test_values_and_errors_come_in_order():
  values = run(Pool(3, 5.0), *(functools.partial(divmod, 12, divisor) for divisor in (5, 0, 4)), leave)
  assert values[0] == (2, 2) and values[2] == (3, 0)
  assert isinstance(values[1], ZeroDivisionError) and isinstance(values[3], SystemExit)
  assert run(Pool(1, 5.0)) == []


def test_many_calls_by_few_threads(started):
  pool = Pool(4, 5.0)
  for _ in range(3):
    assert run(pool, *(functools.partial(int, i) for i in range(500))) == list(range(500))
  assert started() <= 4


def test_threads_without_work_end(monkeypatch, started):
  monkeypatch.setattr(threads, 'IDLE', 0.02)
  pool = Pool(4, 5.0)
  for _ in range(2):
    assert run(pool, *[functools.partial(int, 7)] * 8) == [7] * 8
    assert all_end(started)


def test_what_takes_too_long_is_given_up_and_the_others_go_on():
  held, pool = threading.Event(), Pool(2, 0.2)
  began = time.monotonic()
  values = run(pool, held.wait, *(functools.partial(int, i) for i in range(20)), held.wait)
  assert 0.2 <= time.monotonic() - began < 1.5
  assert isinstance(values[0], TimeoutError) and isinstance(values[-1], TimeoutError)
  assert values[1:-1] == list(range(20))
  held.set()
  assert run(pool, functools.partial(int, 7)) == [7]


def test_threads_that_never_return_are_bounded(monkeypatch, started):
  monkeypatch.setattr(threads, 'STUCK', 3)
  held, pool = threading.Event(), Pool(2, 0.05)
  for _ in range(4):
    assert all(isinstance(value, TimeoutError) for value in run(pool, *[held.wait] * 4))
  assert 3 <= started() <= 2 + 3
  assert isinstance(run(pool, functools.partial(int, 7))[0], NoThread)  # nobody is left
  held.set()
  assert all_end(started)
  assert run(pool, functools.partial(int, 7)) == [7]  # once they have returned, it goes on


def test_a_system_without_threads_ends_nothing(monkeypatch):
  def start(self):
    raise RuntimeError("can't start new thread")

  monkeypatch.setattr(threading.Thread, 'start', start)
  assert isinstance(run(Pool(2, 0.05), functools.partial(int, 7))[0], TimeoutError)


def test_batches_of_several_callers():
  pool = Pool(2, 5.0)
  handed = [pool.submit([functools.partial(int, 10 * i + j) for j in range(5)]) for i in range(2)]
  assert [pool.collect(batch) for batch in handed] == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]
