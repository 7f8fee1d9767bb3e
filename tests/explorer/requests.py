"""Requests for updates, as the page makes them."""

import json

DRAWN = [("drawn", "data"), ("missing", "children"), ("missing", "hidden")]
DRAWN += [("note", "children"), ("code", "children")]


def asked(view="spectra", run=0, data=None):
    """A request for a view."""
    anywhere = '{{"run":["MATCH"],"type":"{}","view":["MATCH"]}}.{}'
    state = {"run": run, "type": "state", "view": view}
    return {
        "output": f"..{'...'.join(anywhere.format(*part) for part in DRAWN)}..",
        "outputs": [{"id": state | {"type": kind}, "property": field} for kind, field in DRAWN],
        "inputs": [{"id": state, "property": "data", "value": data}],
        "changedPropIds": [json.dumps(state) + ".data"],
    }


def live(prompt, what="tokens", number=1, **fields):
    """The body of a request of the live panel."""
    value = {"layers": [7], "ot": "pca_ot:2", "by": "directional_ablation", "strength": 1, "tokens": "all"}
    value |= {"prompt": prompt, "number": number, **fields}
    outputs = {f"live-{what}": "children", f"told-{what}": "data"}
    return json.dumps(
        {
            "output": f"..{'...'.join(f'{name}.{field}' for name, field in outputs.items())}..",
            "outputs": [{"id": name, "property": field} for name, field in outputs.items()],
            "inputs": [{"id": f"ask-{what}", "property": "data", "value": value}],
            "changedPropIds": [f"ask-{what}.data"],
        }
    )
