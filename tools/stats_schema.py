"""Write `docs/stats.schema.json`, the JSON schema of the broker's `/stats`, from the structs of the protocol.

python -m tools.stats_schema
"""

import json
from pathlib import Path

from imagegen_protocol.statistics import json_schema

PATH = Path(__file__).parents[1] / "docs/stats.schema.json"


def main() -> None:
    """Write the file."""
    PATH.write_text(json.dumps(json_schema(), indent=2) + "\n")


if __name__ == "__main__":
    main()
