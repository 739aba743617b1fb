"""A step of `peers.make_model` for all members in JAX: jit, of vmap over members, of value_and_grad and SGD."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peers import MOMENTUM, Pairs, make_model

if torch.get_num_threads() == 1:  # read when JAX starts
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp

Layers = list[tuple[jax.Array, jax.Array]]  # weight [member, in, out] and bias [member, out]


def _loss(layers: Layers, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of one member."""
    y = inputs
    for i, (weight, bias) in enumerate(layers):
        y = y @ weight + bias
        y = y if i == len(layers) - 1 else jax.nn.relu(y)
    return -jnp.take_along_axis(jax.nn.log_softmax(y), targets[:, None], axis=1).mean()


def _member_step(layers: Layers, velocities: Layers, lr: jax.Array, inputs: jax.Array, targets: jax.Array) -> Any:
    loss, grads = jax.value_and_grad(_loss)(layers, inputs, targets)
    velocities = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocities, grads)
    return jax.tree.map(lambda p, v: p - lr * v, layers, velocities), velocities, loss


def jax_steps(batches: Pairs, lrs: np.ndarray) -> Callable[[int], np.ndarray]:
    """A function that trains all members for so many further steps, and returns their losses `[step, member]`."""
    step = jax.jit(jax.vmap(_member_step, in_axes=(0, 0, 0, None, None)), donate_argnums=(0, 1))
    linears = [layer for layer in make_model() if isinstance(layer, torch.nn.Linear)]
    values = [(layer.weight.detach().T.numpy(), layer.bias.detach().numpy()) for layer in linears]
    layers = jax.tree.map(lambda value: jnp.stack([jnp.asarray(value)] * len(lrs)), values)
    state: list[Any] = [layers, jax.tree.map(jnp.zeros_like, layers), 0]
    rates = jnp.asarray(lrs, dtype=jnp.float32)
    arrays = [(jnp.asarray(inputs.numpy()), jnp.asarray(targets.numpy())) for inputs, targets in batches]

    def run(num_steps: int) -> np.ndarray:
        losses = []
        for _ in range(num_steps):
            inputs, targets = arrays[state[2] % len(arrays)]
            state[0], state[1], loss = step(state[0], state[1], rates, inputs, targets)
            state[2] += 1
            losses.append(loss)
        return np.asarray(jnp.stack(losses), dtype=np.float64)

    return run
