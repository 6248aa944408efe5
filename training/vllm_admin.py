"""The administration side of a vLLM server over HTTP: health, pause, weights, caches, log-probabilities.

Blocking calls, for the trainer's main process. Rollouts do not go through here; they have verifiers' async
client. Every failure is a `ServerError` that carries the path, the status and the server's own words.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


class ServerError(RuntimeError):
    """The vLLM server could not be reached, or refused; the message has the server's own words."""


@dataclass(frozen=True)
class Sampled:
    """What the server sampled after one prompt."""

    token_ids: list[int]
    """The sampled tokens."""

    logprobs: list[float]
    """Log-probability of each, in nats, as the rollouts get it."""


class VLLMAdmin:
    """A vLLM server's administration endpoints.

    Args:
        url: the server's root; a trailing `/v1` is dropped.
        seconds: limit on a control call (pause, resume, cache reset, listing models).
        api_key: bearer token, when the server asks for one.
    """

    def __init__(self, url: str, *, seconds: float = 60.0, api_key: str | None = None):
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(
            base_url=self.url,
            timeout=seconds,
            headers=headers,
            # A proxy from the environment must not come between a trainer and its own server.
            trust_env=False,
            # A connection of its own for each call: vLLM closes one that was idle for 5 s, and the one on
            # which it answered 500, so that the next call, a resume of all things, would find it reset.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def close(self) -> None:
        """Close the connections; the object cannot be used afterwards."""
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> Any:
        """One request; the decoded JSON body, or None where the server sends none.

        Raises:
            ServerError: no connection, no answer in time, or a status other than 2xx.
        """
        try:
            response = self._http.request(
                method,
                path,
                json=json,
                params=params,
                timeout=self._http.timeout if seconds is None else seconds,
            )
        except httpx.TimeoutException as error:
            raise ServerError(
                f"{method} {self.url}{path}: no answer within {seconds or self._http.timeout.read:g} s"
            ) from error
        except httpx.HTTPError as error:
            raise ServerError(f"{method} {self.url}{path}: {type(error).__name__}: {error}") from error
        if not response.is_success:
            hint = ""
            if response.status_code == 404 and not path.startswith(("/v1", "/health")):
                hint = " (start vLLM with VLLM_SERVER_DEV_MODE=1 and --enable-scale-out)"
            raise ServerError(
                f"{method} {self.url}{path} answered {response.status_code}{hint}: "
                f"{response.text[:2000].strip()}"
            )
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise ServerError(f"{method} {self.url}{path}: not JSON: {response.text[:200]}") from error

    def healthy(self, seconds: float = 2.0) -> bool:
        """Whether /health answers 200 within `seconds`."""
        try:
            return self._http.get("/health", timeout=seconds).status_code == 200
        except httpx.HTTPError:
            return False

    def models(self) -> list[dict[str, Any]]:
        """The cards of /v1/models: `id`, `max_model_len`, ..."""
        return self.call("GET", "/v1/models")["data"]

    def endpoints(self) -> set[str]:
        """The paths that the server has."""
        return set(self.call("GET", "/openapi.json")["paths"])

    def server_info(self) -> dict[str, Any]:
        """The server's resolved configuration (vLLM's `VllmConfig` as JSON)."""
        return self.call("GET", "/server_info", params={"config_format": "json"})["vllm_config"]

    def pause(self) -> None:
        """Stop scheduling. Requests in flight are kept, lose their KV cache and go on after `resume`."""
        self.call("POST", "/pause", params={"mode": "keep"})

    def resume(self) -> None:
        """Go on scheduling."""
        self.call("POST", "/resume")

    def is_paused(self) -> bool:
        return bool(self.call("GET", "/is_paused")["is_paused"])

    def reload_weights(self, directory: Path, seconds: float) -> None:
        """Have every worker load the safetensors files of `directory`, which the server has to see."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(directory)}, "timeout": seconds}
        self.call("POST", "/collective_rpc", json=body, seconds=seconds + 5)

    def reset_prefix_cache(self) -> None:
        """Forget cached keys and values, so that none of the old weights' are used again.

        Raises:
            ServerError: also when the server says that it could not, because requests still hold blocks.
        """
        answer = self.call("POST", "/reset_prefix_cache")
        if isinstance(answer, Mapping) and answer.get("success") is False:
            raise ServerError(
                f"{self.url} could not reset its prefix cache because requests still hold blocks of it; "
                "pause it first"
            )

    def sample(
        self,
        model: str,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int = 0,
        seconds: float | None = None,
    ) -> Sampled:
        """Sample `max_tokens` tokens after the ids `prompt`, through the endpoint that rollouts use.

        Stop tokens are ignored, so the length is exact. Nothing is said of top_p and top_k: should the server
        have defaults of its own for them, they must show.
        """
        body = {
            "model": model,
            "token_ids": list(prompt),
            "sampling_params": {
                "max_tokens": max_tokens,
                "temperature": temperature,
                "seed": seed,
                "logprobs": 1,
                "ignore_eos": True,
            },
        }
        answer = self.call("POST", "/inference/v1/generate", json=body, seconds=seconds)
        choice = answer["choices"][0]
        logprobs = [float(entry["logprob"]) for entry in choice["logprobs"]["content"]]
        ids = [int(token) for token in choice["token_ids"]]
        if len(ids) != len(logprobs) or not all(math.isfinite(x) for x in logprobs):
            raise ServerError(f"{self.url} sent {len(ids)} tokens with log-probabilities {logprobs}")
        return Sampled(ids, logprobs)
