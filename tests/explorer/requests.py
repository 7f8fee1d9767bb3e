"""Requests as the page makes them."""

import json
from urllib.parse import urlencode


def view_path(view="spectra", run=0, **fields):
    """The address of a view."""
    return f"/view/{run}/{view}?{urlencode(fields)}"


def update(value, what="tokens"):
    """A request for a result of the live panel."""
    outputs = {f"live-{what}": "children", f"told-{what}": "data"}
    return {
        "output": f"..{'...'.join(f'{name}.{field}' for name, field in outputs.items())}..",
        "outputs": [{"id": name, "property": field} for name, field in outputs.items()],
        "inputs": [{"id": f"ask-{what}", "property": "data", "value": value}],
        "changedPropIds": [f"ask-{what}.data"],
    }


def live(prompt, what="tokens", number=1, **fields):
    """The body of a request of the live panel."""
    value = {"layers": [7], "ot": "pca_ot:2", "by": "directional_ablation", "strength": 1, "tokens": "all"}
    return json.dumps(update(value | {"prompt": prompt, "number": number, **fields}, what))
