"""Makes the golden tensors of this directory with JAX in float64.

    python3 -m venv build/venv-golden
    build/venv-golden/bin/pip install -r tests/golden/requirements.txt
    build/venv-golden/bin/python tests/golden/generate.py

Values are written from the definitions in the package comments of kernels,
core/ternary, core/mhc and core/model; gradients come from JAX's automatic
differentiation. Inputs are not stored: `draw` and its twin in the Go test give
the same numbers, which float32 and half precision hold exactly.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from networks import NETWORKS, TERNARY, batch, network_objective, shapes, weights
from ops import bit_linear, cross_entropy, grouped_attention, mhc_site, sites
from safetensors.numpy import save_file
from series import draw

jax.config.update("jax_enable_x64", True)
HERE = pathlib.Path(__file__).parent


def silu(x):
    return x / (1 + jnp.exp(-x))


def relu2(x):
    return jnp.maximum(x, 0) ** 2


def rms_norm(x, weight=None, eps=1e-5):
    y = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    return y if weight is None else y * weight


def put(out, prefix, f, inputs):
    """Stores f's value as PREFIX/out and the gradient of Σ dout·out by every input.

    dout is drawn as PREFIX/dout. inputs maps the names of drawn inputs to values.
    """
    value = f(**inputs)
    dout = draw(f"{prefix}/dout", value.shape)

    def objective(inputs):
        return jnp.sum(f(**inputs) * dout)

    out[f"{prefix}/out"] = value
    for name, g in jax.grad(objective)(inputs).items():
        out[f"{prefix}/d{name}"] = g


def drawn(prefix, **shapes):
    return {name: draw(f"{prefix}/{name}", shape) for name, shape in shapes.items()}


def main():
    ops = {}
    put(ops, "rmsnorm", lambda x: rms_norm(x), drawn("rmsnorm", x=(3, 40)))
    put(ops, "rmsnorm_weight", rms_norm, drawn("rmsnorm_weight", x=(3, 40), weight=(40,)))
    put(ops, "swiglu", lambda gate, up: silu(4 * gate) * up, drawn("swiglu", gate=(100,), up=(100,)))
    put(ops, "relu2glu", lambda gate, up: relu2(gate) * up, drawn("relu2glu", gate=(100,), up=(100,)))
    put(ops, "relu2", relu2, drawn("relu2", x=(100,)))
    cross_entropy(ops)
    for name, options in {"plain": {}, "qknorm": {"qk_norm": True}}.items():
        grouped_attention(ops, f"attention_{name}", put, drawn, rms_norm, **options)
    for name, c in sites().items():
        mhc_site(ops, name, c)
    bit_linear(ops)

    networks = {}
    for name, c in NETWORKS.items():
        w = weights(name, c)
        (objective, parts), grads = jax.value_and_grad(network_objective, has_aux=True)(w, c, batch(c), name in TERNARY)
        networks[f"{name}/objective"] = objective
        for part, value in parts.items():
            networks[f"{name}/{part}"] = value
        for tensor, g in grads.items():
            networks[f"{name}/{tensor}"] = g

    ranges = {name: {k: v[1:] for k, v in shapes(c).items()} for name, c in NETWORKS.items()}
    meta = {"jax": jax.__version__, "networks": json.dumps(NETWORKS), "sites": json.dumps(sites())}
    meta["ternary"] = json.dumps(sorted(TERNARY))
    meta["ranges"] = json.dumps(ranges)  # scale and shift of every tensor of the networks
    for name, tensors in {"ops": ops, "networks": networks}.items():
        single = {k: np.atleast_1d(np.asarray(v, np.float32)) for k, v in sorted(tensors.items())}
        for k, v in single.items():
            assert np.isfinite(v).all(), k
        save_file(single, HERE / f"{name}.safetensors", metadata=meta)


if __name__ == "__main__":
    main()
