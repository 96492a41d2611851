"""Judges of lme_jax that share no code with it: NumPy and SciPy alone."""
