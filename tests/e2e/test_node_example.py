"""The client of `examples/node`, against a fleet and the conformance tool."""

import json
import subprocess

from imagegen_protocol.conformance.images import png
from tests.e2e.conformance import results
from tests.e2e.conftest import start_simulated
from tests.programs import NODE_EXAMPLE, NODE_PACKAGES, needs

pytestmark = needs("node", NODE_PACKAGES)
SEVERAL = """
import { Client } from "./imagegen.mjs";
const client = new Client(process.argv[1]);
const { result, images } = await client.generate({ prompt: "a red circle", seed: 7, num_images: 16 });
const seeds = result.images.map((image) => Number(image.seed));
const { num_gpus } = await client.statistics();
const starts = images.map((image) => image.subarray(1, 4).toString());
const bytes = Buffer.concat(images).length;
console.log(JSON.stringify({ seeds, starts, num_gpus, bytes }));
await client.close();
"""


def node(*arguments):
    """Run Node in the folder of the example; return the JSON that it prints."""
    command = ["node", *arguments]
    done = subprocess.run(command, cwd=NODE_EXAMPLE, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


def test_it_generates_an_image_from_an_input_image(fleet, client, tmp_path):
    start_simulated(fleet, client, "w")
    photo, output = tmp_path / "photo.png", tmp_path / "circle.png"
    photo.write_bytes(png(200))
    made = node("generate.mjs", fleet.frontend, "a red circle", str(output), str(photo))
    assert (made["width"], made["height"]) == (200, 200)
    assert output.read_bytes().startswith(b"\x89PNG")


def test_it_fetches_a_large_answer(fleet, client):
    start_simulated(fleet, client, "w")
    made = node("--input-type=module", "--eval", SEVERAL, fleet.frontend)
    assert made["bytes"] > 16_384
    assert made["seeds"] == list(range(7, 23))
    assert set(made["starts"]) == {"PNG"}
    assert made["num_gpus"] == 1


def test_it_follows_the_protocol(start_tool):
    tool = start_tool("client")
    command = ["node", "load.mjs", tool.endpoint]
    with subprocess.Popen(command, cwd=NODE_EXAMPLE, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as load:
        status, table = tool.finish()
        load.stdin.close()
    assert status == 0, table
    assert set(results(table).values()) == {"pass"}, table
