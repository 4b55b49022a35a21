"""EARL in JAX: language models with an expanded action space, trained by counterfactual policy optimisation."""

__version__ = '0.1.0'
