"""Fit any number of lanes: chunks of one compiled size, bounded rounds, compaction of what has not finished.

A chunk runs a few Newton evaluations; lanes that have ended are written out, the others wait in a pool
until they fill a chunk of their own. So no lane waits for the slowest, one program serves all chunks, and
the memory in use is that of a few chunks however many lanes there are.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np

from . import covariance, lanes, multistart, programs, starts
from .compression import bucket
from .lanes import LaneData
from .multistart import Multistart
from .optimize import NewtonOptions
from .profiled import nothing_kept
from .programs import Backend
from .pytrees import leaves, tree_map
from .records import Fit, assemble
from .threads import n_cores
from .types import Status

# Sums over the levels, of all lanes of a call: half a megabyte.
CACHED_DOUBLES = 1 << 16
# Evaluations per call, where they are dear and where they are cheap.
ROUNDS, CHEAP_ROUNDS = 6, 8
FEW_LEVELS = 16
# Lanes per call for those that need more rounds than most.
NARROW = 128
# What a search costs in NumPy, to weigh against compiling: measured on sleepstudy and on irregular slopes.
SECONDS_PER_OPERATION, EVALUATIONS = 8e-9, 12


class Lanes(NamedTuple):
    """A piece of the work: the lanes' numbers in the caller's order, their data, and a start or None."""

    number: np.ndarray
    data: LaneData
    start: np.ndarray | None = None


class Family(NamedTuple):
    """Lanes of equal p, template and number of levels.

    Attributes
    ----------
    pieces : read one at a time, so that a generator keeps memory bounded; each no longer than ``width``.
    n_lanes : how many lanes the pieces hold in all.
    width : lanes per call; see ``chunk_lanes``.
    """

    pieces: Iterable[Lanes]
    n_lanes: int
    width: int

    @classmethod
    def cut(
        cls, which: np.ndarray, width: int, compress: Callable[[np.ndarray], LaneData], start: np.ndarray | None
    ) -> "Family":
        """The lanes ``which``, compressed ``width`` at a time, each from θ = ``start`` (k,) or None."""

        def pieces() -> Iterator[Lanes]:
            for part in np.array_split(which, -(-len(which) // width)) if len(which) else ():
                theta = None if start is None else np.repeat(np.asarray(start, float)[:, None], len(part), axis=1)
                yield Lanes(part, compress(part), theta)

        return cls(pieces(), len(which), width)


def chunk_lanes(n_levels: int, q: int, p: int) -> int:
    """Lanes that one call fits, the size to cut work into, for models of ``n_levels`` (merged) levels.

    On a CPU the sums over the levels should stay in the cache where they dominate; a GPU wants width.
    """
    if programs.accelerated():
        return 16_384
    if n_levels <= FEW_LEVELS:
        return 2_048
    kq = q * (q + 1) // 2
    summed = kq * ((p + 1) ** 2 + 3 * kq)
    return max(128, min(2_048, 1 << (CACHED_DOUBLES // summed).bit_length() - 1))


def fit_lanes(
    families: Sequence[Family],
    *,
    reml: bool = True,
    options: NewtonOptions = NewtonOptions(),
    progress: bool = False,
) -> Fit:
    """Fit all the lanes of some families, which number them from 0 together.

    Parameters
    ----------
    families : compiled apart.
    progress : whether to show a bar.
    options : with ``backend`` None what is sooner ready, compiling included; see ``programs.sooner``.

    Returns
    -------
    Fit
        NumPy, float64, with a leading axis over the lanes. ``status`` is each lane's own. After a
        KeyboardInterrupt the lanes that are done are returned, the others are NaN and ``INTERRUPTED``.
    """
    n_lanes = sum(family.n_lanes for family in families)
    backend = programs.check_backend(options.backend)
    with _Collector(n_lanes, progress) as collector:
        try:
            for pieces, n, width in families:
                _Driver(collector, n, min(width, bucket(max(n, 1))), reml, options, backend).run(iter(pieces))
        except KeyboardInterrupt:
            warnings.warn(
                f"interrupted: {collector.n_done} of {n_lanes} fits are done and kept, the others are NaN",
                RuntimeWarning,
                stacklevel=3,
            )
        return collector.result()


class _Driver:
    """Keeps every worker busy with a fresh piece, or with a narrow chunk of lanes that have more to do."""

    def __init__(
        self,
        collector: "_Collector",
        n_lanes: int,
        width: int,
        reml: bool,
        options: NewtonOptions,
        backend: Backend | None,
    ) -> None:
        self._collector, self._n_lanes = collector, n_lanes
        self._width, self._narrow = width, min(width, NARROW)
        self._reml, self._options, self._backend = reml, options, backend
        self._pending: set[Future[_Running]] = set()
        self._unfinished: list[_Running] = []

    def run(self, work: Iterator[Lanes]) -> None:
        first = next(work, None)
        if first is None:
            return
        work = itertools.chain([first], work)
        executor = _executor(first.data, self._n_lanes, self._backend)
        self._how = (self._reml, self._options, executor)
        with ThreadPoolExecutor(_workers()) as pool:
            try:
                self._loop(work, pool)
            finally:
                # After an interrupt what is already under way is still kept.
                for future in self._pending:
                    self._unfinished += self._collector.store(future.result())

    def _loop(self, work: Iterator[Lanes], pool: ThreadPoolExecutor) -> None:
        fresh = True
        while fresh or self._pending or self._unfinished:
            while fresh and len(self._pending) < _workers() + 1:
                piece = next(work, None)
                fresh = piece is not None
                if piece is not None:
                    self._pending.add(pool.submit(_begin, piece, self._width, *self._how))
            waiting = sum(len(r.number) for r in self._unfinished)
            if waiting >= self._narrow or (waiting and not fresh and not self._pending):
                self._resume(pool, waiting)
            done, self._pending = (
                wait(self._pending, return_when="FIRST_COMPLETED") if self._pending else (set(), set())
            )
            for future in done:
                self._unfinished += self._collector.store(future.result())

    def _resume(self, pool: ThreadPoolExecutor, waiting: int) -> None:
        together = _concatenate(self._unfinished)
        parts = np.split(np.arange(waiting), np.arange(self._narrow, waiting, self._narrow))
        keep = [parts.pop()] if len(parts[-1]) < self._narrow and len(parts) > 1 else []
        self._unfinished = [together.take(part) for part in keep]
        for part in parts:
            self._pending.add(pool.submit(_resume, together.take(part), self._narrow, *self._how))


def _workers() -> int:
    """Calls to run side by side: a CPU call of this size keeps one core busy, an accelerator is fed by one."""
    if programs.accelerated():
        return 1
    return n_cores()


class _Running(NamedTuple):
    """Lanes after some rounds: the search as it stands, the fit it would give, and which leaves of data they share."""

    number: np.ndarray
    data: LaneData
    state: Multistart
    fit: Fit
    shared: tuple[bool, ...]

    def take(self, which: np.ndarray) -> "_Running":
        state, fit = _take((self.state, self.fit), which)
        return _Running(self.number[which], _take(self.data, which, self.shared), state, fit, self.shared)


def _take(tree: Any, which: np.ndarray, shared: tuple[bool, ...] | None = None) -> Any:
    """Some lanes of NumPy arrays; leaves that all lanes share stay."""
    if shared is None:
        return tree_map(lambda a: a[..., which], tree)
    flags = iter(shared)
    return tree_map(lambda a: a if next(flags) else a[..., which], tree)


def _concatenate(parts: list[_Running]) -> _Running:
    if len(parts) == 1:
        return parts[0]
    sizes = [len(part.number) for part in parts]
    shared = tuple(all(flags) for flags in zip(*[part.shared for part in parts], strict=True))

    def join(*arrays: np.ndarray) -> np.ndarray:
        own = [np.broadcast_to(a, (*a.shape[:-1], n)) for a, n in zip(arrays, sizes, strict=True)]
        return np.concatenate(own, axis=-1)

    flags = iter(shared)
    data = tree_map(lambda *arrays: arrays[0] if next(flags) else join(*arrays), *[part.data for part in parts])
    state, fit = tree_map(join, *[(part.state, part.fit) for part in parts])
    return _Running(np.concatenate([part.number for part in parts]), data, state, fit, shared)


def _padding(n: int, width: int) -> np.ndarray:
    """n lanes, the last one repeated up to ``width``."""
    return np.minimum(np.arange(width), n - 1)


def _executor(data: LaneData, n_lanes: int, backend: Backend | None) -> Backend:
    """Where a family runs: compiled where that is sooner ready than NumPy."""
    if backend is not None:
        return backend
    P, q, p = data.cX.shape[:3]
    kq = q * (q + 1) // 2
    operations = 8 * q**3 + kq * ((p + 1) ** 2 + 3 * kq)
    seconds = SECONDS_PER_OPERATION * EVALUATIONS * P * operations * n_lanes
    return programs.sooner((P, q, p, data.template), seconds)


def _begin(piece: Lanes, width: int, reml: bool, options: NewtonOptions, executor: Backend) -> _Running:
    n = len(piece.number)
    data = tree_map(np.asarray, piece.data)
    shared = tuple(a.shape[-1] == 1 < n for a in leaves(data))
    start = None if piece.start is None else np.asarray(piece.start, float)
    if executor == "jax":
        data = _take(data, _padding(n, width), shared)
        start = None if start is None else start[..., _padding(n, width)]
    state = programs.run(_start, data, start, backend=executor)
    return _run(piece.number, data, state, shared, reml, options, executor)


def _resume(running: _Running, width: int, reml: bool, options: NewtonOptions, executor: Backend) -> _Running:
    data, state = running.data, running.state
    if executor == "jax":
        pad = _padding(len(running.number), width)
        data, state = _take(data, pad, running.shared), _take(state, pad)
    return _run(running.number, data, state, running.shared, reml, options, executor)


def _run(
    number: np.ndarray,
    data: LaneData,
    state: Multistart,
    shared: tuple[bool, ...],
    reml: bool,
    options: NewtonOptions,
    executor: Backend,
) -> _Running:
    limits = (*options.limits(np.float64), starts.n_searches(data.template, data.G, 0, glimpsed=False))
    # Of a design whose likelihood has one optimum the program is simpler.
    sure = bool(np.all(starts.has_one_optimum(data.template, data.G, 0)))
    if executor == "jax":
        data_there, state = _place((data, state), data.n_lanes)
        found = programs.on_jax(_search, data_there, state, *limits, reml=reml, sure=sure)
    else:
        found = programs.run(_search, data, state, *limits, reml=reml, sure=sure)
    padded = _Running(np.arange(data.n_lanes), data, *found, shared)
    return padded.take(np.arange(len(number)))._replace(number=number)


def _place(tree: Any, width: int) -> Any:
    """On every device of the default backend, split over the lanes where they divide evenly."""
    import jax

    devices = jax.local_devices()
    if len(devices) == 1 or width % len(devices):
        return tree
    mesh = jax.sharding.Mesh(np.array(devices), ("lanes",))

    def put(a: Any) -> Any:
        split = a.ndim > 0 and a.shape[-1] == width
        spec = jax.sharding.PartitionSpec(*[None] * (a.ndim - 1), "lanes") if split else jax.sharding.PartitionSpec()
        return jax.device_put(a, jax.sharding.NamedSharding(mesh, spec))

    return jax.tree.map(put, tree)


def _start(data: LaneData, theta: Any) -> Multistart:
    """From θ (k, R) in the user's units, or moment estimates where None."""
    x = lanes.moment_start(data) if theta is None else theta * covariance.theta_scale(data.template, data.basis.z_scale)
    return multistart.begin(x, nothing_kept(data.cX.shape[2], x))


def _search(
    data: LaneData, state: Multistart, tol: Any, max_iter: Any, searches: Any, *, reml: bool, sure: bool
) -> tuple[Multistart, Fit]:
    rounds = CHEAP_ROUNDS if data.count.shape[0] <= FEW_LEVELS else ROUNDS
    plan = None if sure else starts.plan(data.template, searches, starts.has_one_optimum(data.template, data.G, 0))
    state = multistart.minimise(lambda x: lanes.objective(x, data, reml), state, plan, tol, max_iter, rounds)
    return state, assemble(state.found, data, data.template, reml, state.optima)


class _Collector:
    """Results by lane number, and the progress bar."""

    def __init__(self, n_lanes: int, progress: bool) -> None:
        self.n_lanes = n_lanes
        self.n_done = 0
        self._fit: Fit | None = None
        self._progress = progress

    def __enter__(self) -> "_Collector":
        from tqdm.auto import tqdm

        self._bar = tqdm(total=self.n_lanes, disable=not self._progress, unit="fit", delay=2.0)
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def store(self, running: _Running) -> list[_Running]:
        """Write the lanes that ended; return the others, to go on."""
        ended = running.state.now.status >= 0
        if self._fit is None:
            self._fit = tree_map(self._room, running.fit)
            self._fit.status[...] = Status.INTERRUPTED
        which, number = np.flatnonzero(ended), running.number[ended]
        for name in vars(running.fit):
            getattr(self._fit, name)[number] = np.moveaxis(getattr(running.fit, name)[..., which], -1, 0)
        self.n_done += len(which)
        self._bar.update(len(which))
        rest = np.flatnonzero(~ended)
        return [running.take(rest)] if len(rest) else []

    def _room(self, a: np.ndarray) -> np.ndarray:
        shape = (self.n_lanes, *a.shape[:-1])
        return np.zeros(shape, a.dtype) if a.dtype.kind in "bi" else np.full(shape, np.nan, a.dtype)

    def result(self) -> Fit:
        if self._fit is None:
            raise KeyboardInterrupt
        return self._fit
