"""Chat models served by vLLM in Ray actors that the stages of a run share, or by an outside server."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field

from cluster.chat import ChatReply, ChatRequest
from cluster.config import StageConfig, runtime
from cluster.dag import Context

_PROJECT = Path(__file__).resolve().parent.parent


class EngineSettings(StageConfig):
    """A model and how it is served. Stages with equal settings share the engines, be they for captions or scores."""

    model: str = Field(description="A model folder (absolute, or from the project's or working folder) or a hub id.")
    dtype: str = Field("auto", description="`auto` is float32 without a GPU.")
    max_model_len: int = Field(2048, ge=16, description="Tokens of prompt and answer together.")
    max_image_pixels: int = Field(16_000_000, ge=1, description="A larger picture fails its own row.")
    seed: int = 0
    limit_images: int = runtime(2, ge=0, description="Pictures in one request.")
    max_num_seqs: int = runtime(64, ge=1, description="Requests that the engine batches.")
    num_in_flight: int = runtime(128, ge=1, description="Requests on their way to one engine at one time.")
    num_engines: int = runtime(
        1, ge=1, description="Engines that share the requests; as many work as the cluster has room for."
    )
    tensor_parallel_size: int = runtime(1, ge=1, description="GPUs for one engine.")
    gpu_memory_utilization: float = runtime(0.9, gt=0, le=1)
    cpu_kv_cache_gib: int = runtime(1, ge=1)
    endpoint: str | None = runtime(
        None,
        description="Base URL (http://127.0.0.1:8000/v1) of an OpenAI-compatible server to use instead.",
    )

    def resolved_model(self) -> str:
        """The absolute path if `model` is a folder here, else `model` as it stands (a hub id)."""
        for path in (Path(self.model).expanduser(), _PROJECT / self.model):
            if path.is_dir():
                return str(path.resolve())
        return self.model

    def source(self) -> list[str]:
        """What belongs to a stage's fingerprint (`Stage.sources`): the model's folder, or nothing for a hub
        id.
        """
        model = self.resolved_model()
        return [model] if os.path.isdir(model) else []


def get_engine(settings: EngineSettings, context: Context) -> "Engine":
    """The engine with these settings in this run: started at the first call, found at later ones.

    Returns when it is ready (its loading shows as progress); of several, when one is, and the others join later.

    Raises:
        UserError: the model can't be loaded, or the server doesn't answer.
    """
    if settings.endpoint:
        from cluster.endpoint import EndpointEngine

        return EndpointEngine(settings, context)
    from cluster.vllm_pool import EnginePool

    return EnginePool(settings, context)


class Engine:
    """What answers requests. `generate` is all that stages use."""

    def generate(self, requests: Iterable[ChatRequest | None]) -> Iterator[ChatReply]:
        """Replies in the order of completion; a bounded number of requests is on its way at any time.

        The iterable is read as far as there is room, so it may be endless, load lazily, and bring a retry
        after a reply was given out. Where it yields None, it is asked again after the next reply.
        """
        raise NotImplementedError
