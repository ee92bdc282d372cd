"""``ganlab score``: score any images against a dataset, without a run."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ganlab import api
from ganlab.runs.result import format_scores


def score_images(images: str, overrides: Sequence[str], as_json: bool) -> None:
    """Print the scores and their protocol. Raises as ``api.score``."""
    record = api.score(images, overrides)
    if as_json:
        print(json.dumps(record, indent=1))
        return
    protocol = record["protocol"]
    print(f"{images}: {format_scores(record['values'])}")
    print(f"protocol {protocol['protocol']} {record['protocol_id']}, against {protocol['dataset']}")
