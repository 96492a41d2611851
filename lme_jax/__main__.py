"""``python -m lme_jax`` is ``lme``."""

from lme_jax.cli.commands import main

main()
