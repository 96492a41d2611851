"""Benchmarks of lme_jax beside other engines: ``python -m benchmarks.run small``; see README.md here."""
