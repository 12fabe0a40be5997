"""Our settings and requests in vLLM's words. vLLM itself is imported when they are asked for."""

import logging
import os
from pathlib import Path
from typing import Any

from cluster.chat import ChatRequest


def engine_arguments(settings: Any) -> tuple[bool, Any]:
    """Whether vLLM runs on the CPU, and its `EngineArgs` for these settings. Prepares this process: call it before
    anything else imports vLLM.
    """
    model = settings.resolved_model()
    os.environ.update(VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if Path(model).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    # Settings of the CPU engine are read at import, before it is known whether there is a GPU; elsewhere unused.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.cpu_kv_cache_gib))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    values: dict[str, Any] = {}
    if on_cpu:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        _register_in_process(model)
        from cluster.vllm_noise import SeededNoise

        values = {"enforce_eager": True, "async_scheduling": False, "logits_processors": [SeededNoise]}
        # It warns at every step that the threads stay as they are.
        worker_log = logging.getLogger("vllm.v1.worker.cpu_worker")
        worker_log.addFilter(lambda line: "set_num_threads" not in str(line.msg))
    else:
        values = {"gpu_memory_utilization": settings.gpu_memory_utilization}
    from vllm import EngineArgs

    return on_cpu, EngineArgs(
        model=model, load_format="safetensors", trust_remote_code=False, seed=settings.seed,
        dtype="float32" if on_cpu and settings.dtype == "auto" else settings.dtype,
        max_model_len=settings.max_model_len, max_num_seqs=settings.max_num_seqs,
        tensor_parallel_size=settings.tensor_parallel_size, generation_config="vllm",
        limit_mm_per_prompt={"image": settings.limit_images, "video": 0}, mm_processor_cache_gb=0,
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
        disable_log_stats=True, **values,
    )  # fmt: skip


def sampling_params(request: ChatRequest, on_cpu: bool) -> Any:
    """vLLM's `SamplingParams` of a request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    sampled = request.temperature > 0 and request.seed is not None
    values: dict[str, Any] = {"temperature": request.temperature}
    if sampled and on_cpu:
        from cluster.vllm_noise import seeded_params

        values = {"temperature": 0.0, "extra_args": seeded_params(request.seed, request.temperature)}
    elif sampled:
        values["seed"] = request.seed
    if request.schema is not None:
        values["structured_outputs"] = StructuredOutputsParams(json=request.schema)
    return SamplingParams(
        max_tokens=request.max_tokens,
        logprobs=request.logprobs,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **values,
    )


def _register_in_process(model: str) -> None:
    """Registers the model's class itself, which spares vLLM a subprocess with all imports to look at it."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    for name in AutoConfig.from_pretrained(model).architectures or ():
        if name in ModelRegistry.models and (cls := ModelRegistry.models[name].load_model_cls()):
            ModelRegistry.register_model(name, cls)
