"""All uses of one Python client, as JSON: `python python_clients.py CLIENT BASE_URL KEY LIMITED_KEY IMAGE`.

Runs in the environment of the clients, which has no package of the project.
"""

import asyncio
import base64
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import ProxyHandler, build_opener

SIZE = "64x64"


def describe(data: bytes) -> dict[str, Any]:
    """Return format and size of a PNG."""
    size = [int.from_bytes(data[at : at + 4], "big") for at in (16, 20)]
    return {"format": data[1:4].decode("latin-1"), "size": size}


def fetch(url: str) -> bytes:
    """Return the content of a URL on this machine."""
    with build_opener(ProxyHandler({})).open(url) as response:
        content: bytes = response.read()
    return content


def describe_error(error: Exception) -> dict[str, Any]:
    """Return what programs read of an exception of OpenAI's client, or of one that wraps it."""
    response = getattr(error, "response", None)
    headers = {} if response is None else response.headers
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return {
        "kinds": kinds,
        "status": getattr(error, "status_code", None),
        "message": str(error),
        "request_id": getattr(error, "request_id", None),
        "retry_after": headers.get("retry-after"),
        "param": getattr(error, "param", None),
    }


class Openai:
    """OpenAI's own client."""

    def __init__(self, given: SimpleNamespace) -> None:
        from openai import OpenAI

        self.given = given
        self.client = OpenAI(base_url=given.url, api_key=given.key, max_retries=0)

    def generate(self) -> dict[str, Any]:
        response = self.client.images.generate(prompt="a cat", model=self.given.model, size=SIZE)
        return {**describe(base64.b64decode(response.data[0].b64_json)), "request_id": response._request_id}

    def edit(self) -> dict[str, Any]:
        image = Path(self.given.image)
        response = self.client.images.edit(image=image, prompt="a dog", model=self.given.model)
        return describe(base64.b64decode(response.data[0].b64_json))

    def models(self) -> dict[str, Any]:
        return {"names": [model.id for model in self.client.models.list()]}

    def stream(self) -> dict[str, Any]:
        events = self.client.images.generate(prompt="a cat", size=SIZE, stream=True, partial_images=1)
        last = list(events)[-1]
        return {**describe(base64.b64decode(last.b64_json)), "type": last.type}

    def invalid(self) -> dict[str, Any]:
        self.client.images.generate(prompt="a cat", n=99)
        return {}


class AsyncOpenai:
    """OpenAI's asynchronous client."""

    def __init__(self, given: SimpleNamespace) -> None:
        self.given = given

    def _run(self, use: Any) -> Any:
        from openai import AsyncOpenAI

        async def run() -> Any:
            async with AsyncOpenAI(base_url=self.given.url, api_key=self.given.key, max_retries=0) as client:
                return await use(client)

        return asyncio.run(run())

    def generate(self) -> dict[str, Any]:
        response = self._run(lambda client: client.images.generate(prompt="a cat", size=SIZE))
        return describe(base64.b64decode(response.data[0].b64_json))

    def edit(self) -> dict[str, Any]:
        image = Path(self.given.image)
        response = self._run(lambda client: client.images.edit(image=[image], prompt="a dog"))
        return describe(base64.b64decode(response.data[0].b64_json))

    def invalid(self) -> dict[str, Any]:
        self._run(lambda client: client.images.generate(prompt="a cat", n=99))
        return {}


class Litellm:
    """litellm with a base URL."""

    def __init__(self, given: SimpleNamespace) -> None:
        self.options = {
            "model": f"openai/{given.model}",
            "api_base": given.url,
            "api_key": given.key,
            "max_retries": 0,
        }
        self.given = given

    def generate(self) -> dict[str, Any]:
        import litellm

        response = litellm.image_generation(prompt="a cat", size=SIZE, **self.options)
        return describe(_image(response.data[0]))

    def edit(self) -> dict[str, Any]:
        import litellm

        with Path(self.given.image).open("rb") as image:
            response = litellm.image_edit(image=image, prompt="a dog", **self.options)
        return describe(_image(response.data[0]))

    def invalid(self) -> dict[str, Any]:
        import litellm

        litellm.image_generation(prompt="a cat", n=99, **self.options)
        return {}


class Langchain:
    """langchain's wrapper, which reads URLs and asks for dall-e-2 unless told otherwise."""

    def __init__(self, given: SimpleNamespace) -> None:
        from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

        self.wrapper = DallEAPIWrapper(base_url=given.url, api_key=given.key, size=SIZE, max_retries=0)

    def generate(self) -> dict[str, Any]:
        return describe(fetch(self.wrapper.run("a cat")))

    def invalid(self) -> dict[str, Any]:
        self.wrapper.n = 99
        self.wrapper.run("a cat")
        return {}


class Haystack:
    """haystack's generator, which asks for gpt-image-2 by default."""

    def __init__(self, given: SimpleNamespace) -> None:
        from haystack.components.generators import OpenAIImageGenerator
        from haystack.utils import Secret

        self.generator = OpenAIImageGenerator(
            api_base_url=given.url, api_key=Secret.from_token(given.key), max_retries=0
        )
        self.generator.warm_up()

    def generate(self) -> dict[str, Any]:
        return describe(base64.b64decode(self.generator.run("a cat", size=SIZE)["images"][0]))

    def invalid(self) -> dict[str, Any]:
        self.generator.run("a cat", size="big")
        return {}


class PydanticAi:
    """pydantic-ai's image generator."""

    def __init__(self, given: SimpleNamespace) -> None:
        from openai import AsyncOpenAI
        from pydantic_ai.images import ImageGenerator
        from pydantic_ai.images.openai import OpenAIImageGenerationModel
        from pydantic_ai.providers.openai import OpenAIProvider

        client = AsyncOpenAI(base_url=given.url, api_key=given.key, max_retries=0)
        model = OpenAIImageGenerationModel("gpt-image-2", provider=OpenAIProvider(openai_client=client))
        self.generator = ImageGenerator(model)
        self.given = given

    def generate(self) -> dict[str, Any]:
        result = self.generator.generate_sync("a cat", settings={"extra_body": {"size": SIZE}})
        return describe(result.images[0].content.data)

    def edit(self) -> dict[str, Any]:
        from pydantic_ai import BinaryImage

        image = BinaryImage(data=Path(self.given.image).read_bytes(), media_type="image/png")
        return describe(self.generator.generate_sync("a dog", images=[image]).images[0].content.data)

    def invalid(self) -> dict[str, Any]:
        self.generator.generate_sync("a cat", settings={"extra_body": {"size": "big"}})
        return {}


class Agno:
    """agno's tool, which reads URLs, asks for dall-e-3 and has no option for a base URL."""

    def __init__(self, given: SimpleNamespace) -> None:
        from agno.tools.dalle import DalleTools

        os.environ["OPENAI_BASE_URL"] = given.url
        self.tools = DalleTools(api_key=given.key, size="256x256", model="dall-e-2")

    def generate(self) -> dict[str, Any]:
        result = self.tools.create_image("a cat")
        if result.images is None:  # it catches all exceptions
            return {"message": result.content}
        return describe(fetch(result.images[0].url))


def _image(item: Any) -> bytes:
    return base64.b64decode(item.b64_json) if item.b64_json else fetch(item.url)


USES = ("generate", "edit", "models", "stream", "invalid")
CLIENTS = {
    "openai": Openai,
    "openai-async": AsyncOpenai,
    "litellm": Litellm,
    "langchain": Langchain,
    "haystack": Haystack,
    "pydantic-ai": PydanticAi,
    "agno": Agno,
}


def run(client: str, use: str, given: SimpleNamespace) -> dict[str, Any]:
    """Return the outcome of one use of a client."""
    try:
        outcome: dict[str, Any] = getattr(CLIENTS[client](given), use)()
    except Exception as error:  # noqa: BLE001 - the test checks the kind
        known = error if getattr(error, "status_code", None) else error.__cause__ or error
        return {"error": describe_error(known)}  # type: ignore[arg-type]
    return outcome


def main(client: str, url: str, key: str, limited_key: str, image: str) -> None:
    """Print the outcomes of all uses by name; `limited` generates with a key that has reached its rate."""
    given = SimpleNamespace(url=url, key=key, image=image, model="gpt-image-1")
    uses = [name for name in USES if hasattr(CLIENTS[client], name)]
    outcomes = {use: run(client, use, given) for use in uses}
    given.key = limited_key
    outcomes["limited"] = run(client, "generate", given)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
