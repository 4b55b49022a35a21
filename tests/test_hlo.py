"""Reading compiled text: what counts how often, by hand."""

import pytest

from tests import benchmark

TEXT = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%layer (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %gathered = bf16[16,8]{1,0} all-gather(%x), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
}

%layers_left (p: (s32[], f32[4,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %three), direction=LT
}

%small (p: f32[2]) -> f32[2] {
  %s = f32[2]{0} all-reduce(%p), to_apply=%add
}

%large (p: f32[2]) -> f32[2] {
  %l = (f32[2]{0}, f32[3,4]{1,0:T(8,128)}, /*index=2*/f32[]) all-reduce(%p, %q, %r), to_apply=%add
}

%token (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %w = (s32[], f32[4,8]) while(%t), condition=%layers_left, body=%layer, backend_config={"known_trip_count":{"n":"3"}}
  %c = f32[2]{0} conditional(%which, %a, %a), branch_computations={%small, %large}
}

%rows_left (p: (s32[], f32[4,8])) -> pred[] {
  %active = s32[] all-reduce(%count), to_apply=%add
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %start = (f32[4,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%p), dimensions={0}
  %done = f32[8,8]{1,0} all-gather-done(%start)
  %f = f32[2]{0} fusion(%p), kind=kLoop, calls=%small
  ROOT %w = (s32[], f32[4,8]{1,0}) while(%t), condition=%rows_left, body=%token
}
"""


@pytest.fixture(scope='module')
def hlo():
  return benchmark.load('hlo')


def test_collectives_count_as_often_as_they_run(hlo):
  found = sorted((c.kind, c.bytes, c.times, c.repeated) for c in hlo.collectives(TEXT))
  assert found == [
      ('all-gather', 8 * 8 * 4, 1, False),  # an asynchronous one counts once, with its result alone
      ('all-gather', 3 * 16 * 8 * 2, 3, True),  # three layers of every token
      ('all-reduce', 4, 1, True),  # in the loop's condition
      ('all-reduce', 2 * 4, 1, False),  # in a fusion
      ('all-reduce', (2 + 12 + 1) * 4, 1, True),  # the branch that sends more
  ]


def test_arrays_of_all_kinds_are_found(hlo):
  assert hlo.arrays('(f32[2,3]{1,0}, s32[], pred[7]) f8e4m3fn[5]{0} token[]') == [
      ('f32', (2, 3)), ('s32', ()), ('pred', (7,)), ('f8e4m3fn', (5,))
  ]


def test_cycles_of_a_turn_of_each_loop_of_a_name(hlo):
  text = """
%body.1 (x: f32[2]) -> f32[2] {
  %a = f32[2]{0} fusion(%x), backend_config={"estimated_cycles":"30"}
  ROOT %b = f32[2]{0} add(%a, %a), backend_config={"estimated_cycles":"4"}
}

%other (x: f32[2]) -> f32[2] {
  ROOT %c = f32[2]{0} add(%x, %x), backend_config={"estimated_cycles":"500"}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %w = f32[2]{0} while(%x), condition=%test, body=%body.1, metadata={op_name="jit(f)/while"}
  ROOT %v = f32[2]{0} while(%w), condition=%test, body=%other, metadata={op_name="jit(f)/while/body/while"}
}
"""
  assert hlo.cycles(text, 'jit(f)/while') == [34]
