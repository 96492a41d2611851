"""The same numbers on 1, 2 and 4 (forced host) devices: responses over devices, and levels over devices."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import sys, numpy as np, jax
import lme_jax as lme
n_devices, out = int(sys.argv[1]), sys.argv[2]
assert jax.local_device_count() == n_devices
rng = np.random.default_rng(0)
groups = np.repeat(np.arange(32), 6)
x = rng.normal(size=192)
X = np.column_stack([np.ones(192), x])
Y = X.sum(1)[:, None] + rng.normal(size=(32, 40))[groups] + rng.normal(size=(192, 40))
many = lme.fit_many(Y, X, X, groups, progress=False).fit
data = lme.compress(Y[:, 0], X, X, groups)
with jax.enable_x64(True):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("levels",))
    length = data.G.shape[-1]
    def place(a):
        split = a.ndim and a.shape[-1] == length
        spec = jax.sharding.PartitionSpec(*[None] * (a.ndim - 1), "levels") if split else jax.sharding.PartitionSpec()
        return jax.device_put(a, jax.sharding.NamedSharding(mesh, spec))
    placed = jax.tree.map(place, data)
    assert len(placed.C.sharding.device_set) == n_devices
    one = lme.fit(placed)
    blups = lme.random_effects(one, placed)[0].b
found = {"theta": many.theta, "deviance": many.deviance, "beta": many.beta}
np.savez(out, **found, one=np.asarray(one.theta), blups=np.asarray(blups))
"""


def test_device_counts_agree(tmp_path):
    found = {}
    for n_devices in (1, 2, 4):
        out = tmp_path / f"{n_devices}.npz"
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={n_devices}", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", PROGRAM, str(n_devices), str(out)]
        subprocess.run(command, check=True, env=os.environ | flags, timeout=300)
        found[n_devices] = np.load(out)
    for n_devices in (2, 4):
        for name, expected in found[1].items():
            # Sums over devices associate differently; the searches end within rounding of one another.
            np.testing.assert_allclose(found[n_devices][name], expected, rtol=1e-9, atol=1e-9)
