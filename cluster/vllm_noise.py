"""Repeatable sampling for vLLM's CPU engine, where a per-request `seed` can end the engine.

The engine decodes greedily and this adds `temperature * Gumbel noise` to the logits first. The arg max of
that is an exact sample of softmax(logits / temperature). The noise depends on the request's seed and the
token's position alone, so neither the batch nor a preemption nor a restart of the engine changes the sample.
"""

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

ARGUMENT = "gumbel_noise"
_GOLDEN = 0x9E3779B97F4A7C15


def seeded_params(seed: int, temperature: float) -> dict:
    """The `extra_args` of a greedy request that is to be sampled at this temperature."""
    return {ARGUMENT: (seed, temperature)}


class SeededNoise(AdapterLogitsProcessor):
    """Adds the noise to the rows of those requests that ask for it."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams):
        if ARGUMENT not in (params.extra_args or {}):
            return None
        seed, temperature = params.extra_args[ARGUMENT]

        def add_noise(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            generator = torch.Generator().manual_seed((seed * _GOLDEN + len(output_ids)) % (1 << 63))
            noise = torch.empty(logits.shape).exponential_(generator=generator).log_().neg_()
            return logits + temperature * noise.to(logits)

        return add_noise
