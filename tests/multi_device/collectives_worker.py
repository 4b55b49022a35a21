"""Compiles rollout and update on meshes of up to eight virtual devices and writes what their text says; runs nothing.

  python -m tests.multi_device.collectives_worker FACTS.json MESH...
"""

import json
import pathlib
import sys

from earl_jax.acting import scoring
from earl_jax.config import MeshConfig
from tests import benchmark

collectives, hlo, programs = (benchmark.load(name) for name in ('collectives', 'hlo', 'programs'))

CHUNK = 32  # decisions scored at a time: several chunks in every micro-batch


def facts(mesh: str) -> dict:
  experiment = collectives.build(collectives.make_mesh(MeshConfig(*map(int, mesh.split('x')))))
  texts = collectives.compiled(experiment)
  resume, shapes = programs.lower_resume(experiment).compile().as_text(), collectives.parameter_shapes(experiment)
  rollout, model = experiment.config.rollout, experiment.model
  sent = [(found.repeated, array) for found in hlo.collectives(resume) for array in found.results
          if collectives.plain(array.shape) not in shapes]
  return {
      'rewriting': sum(array.bytes for repeated, array in sent if not repeated),
      'largest_of_a_pass': max((array.size for repeated, array in sent if repeated), default=0),
      'keys': rollout.response_length * model.num_key_value_heads * model.head_dim,
      'bytes': collectives.measure(experiment, texts),
      'collectives': {
          name: sorted({array.shape for found in hlo.collectives(text) for array in found.results})
          for name, text in texts.items()
      },
      'arrays': {name: sorted({array.shape for array in hlo.arrays(text)}) for name, text in texts.items()},
      'vocabulary': model.vocab_size,
      'hidden': model.hidden_size,
      'chunk': CHUNK,
      'response': rollout.response_length,
      'micro_batch': experiment.config.algorithm.micro_batch,
  }


if __name__ == '__main__':
  out, *meshes = sys.argv[1:]
  scoring.MOST_AT_ONCE = CHUNK
  pathlib.Path(out).write_text(json.dumps({mesh: facts(mesh) for mesh in meshes}))
