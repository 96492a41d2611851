"""The command line, ``lme`` or ``python -m lme_jax``: models of files, without writing Python."""
