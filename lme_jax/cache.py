"""Compiled programs kept on disk, so that a new process does not compile again."""

import os
from pathlib import Path


def enable_compilation_cache(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keep compiled programs on disk and reuse them in later processes.

    This sets JAX's own persistent-cache options for the whole process; call it once, before the first fit.
    Importing lme_jax never does it for you.

    Parameters
    ----------
    folder : path, optional
        Where to keep them; ``~/.cache/lme_jax`` (or ``$XDG_CACHE_HOME/lme_jax``) if None.

    Returns
    -------
    Path
        The folder, created if it was not there.
    """
    import jax

    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lme_jax"
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path
