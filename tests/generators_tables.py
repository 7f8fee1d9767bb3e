"""Synthetic tables of a run, in the schema of a real one: what the figures and the report are tested on.

The curves are made up but shaped like real ones: refusal flips along the depth, at another layer for each
method, and one destroyed model (low refusal rate, no right answers, large KL) is among them.
"""

from itertools import combinations

import numpy as np
import pandas as pd

METHODS = (
    ("directional_ablation", None, 6.5),
    ("rfa", None, 5.5),
    ("ace", None, 6.0),
    ("mean_shift", None, 5.5),
    ("linear_act", None, 5.0),
    ("pca_ot", 1, 5.5),
    ("pca_ot", 2, 5.0),
    ("pca_ot", 4, 4.5),
    ("pca_ot", 8, 4.0),
)
STATES = ("directional_ablation", "pca_ot (k = 1)", "pca_ot (k = 2)", "pca_ot (k = 4)", "pca_ot (k = 8)")


def wilson(p, n, z=1.96):
    centre, root = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - root) / (1 + z * z / n), (centre + root) / (1 + z * z / n)


def _measured(method, refuses, cost, n, rng):
    """Rows (measure, prompts, value, low, high, unit, interval) of one intervention."""
    destroyed = method == "linear_act"
    right = (1 - refuses) * (0.1 if destroyed else 0.95)
    rates = [
        ("refusal_rate", "harmful", refuses),
        ("refusal_rate", "harmless", 0.0),
        ("attack_success_rate", "harmful", None),
        ("exact_answer_rate", "harmful", right),
        ("exact_answer_rate", "harmless", max(0.0, 0.99 - (0.6 if destroyed else 0.1) * cost)),
    ]
    rows = []
    for measure, prompts, p in rates:
        # An attack succeeds on whatever is not refused: the first share drawn.
        share = 1 - rows[0][2] if p is None else rng.binomial(n, p) / n
        rows.append((measure, prompts, share, *wilson(share, n), "share", "wilson"))
    score = 18 * (refuses - 0.5)
    kl = (6.0 if destroyed else 0.4) * cost**2
    rows.append(("refusal_score", "harmful", score, score - 1.1, score + 0.9, "nats", "bootstrap"))
    rows.append(("kl", "harmless", kl, 0.8 * kl, 1.3 * kl, "nats", "bootstrap"))
    ppl = 1.4 + 3 * kl
    rows.append(("perplexity", "harmless", ppl, 0.95 * ppl, 1.06 * ppl, "perplexity", "bootstrap"))
    return rows


def localization(layers=8, methods=METHODS, n=64, seed=0):
    rng = np.random.default_rng(seed)
    rows = []

    def add(kind, chosen, layer, method, k, refuses, cost):
        for measure, prompts, value, low, high, unit, interval in _measured(method, refuses, cost, n, rng):
            rows.append(
                {
                    "key": "none" if kind == "none" else f"{kind}|{chosen}|{method}|{k}",
                    "set": kind,
                    "layers": chosen,
                    "layer": layer,
                    "method": method,
                    "k": k,
                    "strength": 0.0 if kind == "none" else 1.0,
                    "tokens": "all",
                    "hook": "resid_pre",
                    "transport": "" if kind == "none" else "harmful_to_harmless",
                    "control": "",
                    "draw": pd.NA,
                    "fitting": "" if kind == "none" else "independent",
                    "measure": measure,
                    "prompts": prompts,
                    "value": value,
                    "low": low,
                    "high": high,
                    "n": n,
                    "unit": unit,
                    "interval": interval,
                    "seed": seed,
                    "engine": "bridge",
                }
            )

    add("none", "", pd.NA, "none", pd.NA, 1.0, 0.0)
    for method, k, flip in methods:
        rank = pd.NA if k is None else k
        for layer in range(layers):
            depth = 8 * layer / max(layers - 1, 1)
            add(
                "single",
                str(layer),
                layer,
                method,
                rank,
                1 / (1 + np.exp(2.2 * (depth - flip))),
                0.2 + 0.08 * depth,
            )
        add("all", f"0-{layers - 1}", pd.NA, method, rank, 0.02, 0.9)
    table = pd.DataFrame(rows)
    return table.astype({"layer": "Int64", "k": "Int64", "draw": "Int64"})


def with_everything_else(sweep):
    """A sweep with weaker strengths, controls, pairs, the way back, sequential fits: absurd values all."""
    single, together = (sweep[sweep["set"] == name].assign(value=0.123) for name in ("single", "all"))
    others = [
        single.assign(strength=0.5),
        single.assign(control="random_subspace", draw=0),
        single.assign(control="permuted_labels", draw=1),
        single.assign(transport="harmless_to_harmful"),
        single.assign(set="pair", layers="0,1", layer=pd.NA),
        together.assign(fitting="sequential"),
        single.assign(tokens="last"),
    ]
    return pd.concat([*others, sweep], ignore_index=True).astype({"layer": "Int64", "draw": "Int64"})


def geometry(layers=8, n=128, position=-1, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for layer in range(layers):
        depth = (layer + 1) / layers
        location, bures = 40 * depth**2, 6 * depth**1.5 + 0.5
        quantities = {
            "w2_location": (location, 0.8 * depth, "activation²"),
            "w2_bures": (bures, 0.7 * bures, "activation²"),
            "w2_squared": (location + bures, 0.8 * depth + 0.7 * bures, "activation²"),
            "auc_direction": (0.5 + 0.5 * depth**0.3, 0.5, "AUC"),
            "gap": (3 * depth, 0.4, "activation"),  # as a user may register
            **{
                f"{name}_{label}": (size * (1 + 2 * depth), size * (1.1 + 2 * depth), "dimensions")
                for name, label, size in (
                    ("effective_rank", "harmful", 18),
                    ("effective_rank", "harmless", 22),
                    ("participation_ratio", "harmful", 6),
                    ("participation_ratio", "harmless", 9),
                )
            },
        }
        for quantity, (value, null, unit) in quantities.items():
            wobble = 1 + 0.03 * rng.standard_normal()
            rows.append(
                {
                    "layer": layer,
                    "position": position,
                    "quantity": quantity,
                    "value": value * wobble,
                    "n": n,
                    "null_mean": null,
                    "null_low": 0.85 * null,
                    "null_high": 1.2 * null,
                    "low": 0.9 * value,
                    "high": 1.12 * value,
                    "unit": unit,
                }
            )
    return pd.DataFrame(rows)


def spectra(layers=8, components=95, n=128, position=-1):
    rows = []
    for layer in range(layers):
        for label, slope in (("harmful", 1.3), ("harmless", 1.0)):
            values = (1 + layer) * (np.arange(components) + 1.0) ** -slope
            for component, value in enumerate(values):
                rows.append(
                    {
                        "layer": layer,
                        "position": position,
                        "class": label,
                        "component": component,
                        "eigenvalue": value,
                        "share": value / values.sum(),
                        "n": n,
                        "low": 0.9 * value,
                        "high": 1.15 * value,
                        "unit": "activation²",
                    }
                )
    return pd.DataFrame(rows)


def cosines(layers=8, n=128, position=-1):
    rows = [
        {
            "layer_a": a,
            "layer_b": b,
            "position": position,
            "cosine": np.exp(-abs(a - b) / (0.35 * layers)) - 0.1 * (a != b),
            "n": n,
            "low": np.nan,
            "high": np.nan,
            "null_mean": 0.0,
            "null_low": -0.12,
            "null_high": 0.12,
        }
        for a in range(layers)
        for b in range(layers)
    ]
    return pd.DataFrame(rows)


def _cloud(rng, label, layer, n):
    spread = np.diag([1.2, 0.7]) if label == "harmful" else np.array([[0.8, 0.3], [0.0, 1.0]])
    centre = np.array([1.0 + 0.5 * layer, 0.3]) * (1 if label == "harmful" else -1)
    return centre + rng.standard_normal((n, 2)) @ spread


def _moved(points, target, state):
    if state == "directional_ablation":
        return points * np.array([0.0, 1.0])
    shifted = points - points.mean(0)
    if state.startswith("pca_ot"):
        shifted = (
            shifted
            @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
            @ np.linalg.cholesky(np.cov(target.T)).T
        )
    return shifted + target.mean(0)


def plane(layers=8, n=64, states=STATES, position=-1, seed=0):
    """Both tables of the principal plane: points and ellipses."""
    rng = np.random.default_rng(seed)
    points, ellipses = [], []
    for layer in range(layers):
        clouds = {label: _cloud(rng, label, layer, n) for label in ("harmful", "harmless")}
        placed = [(label, "before", xy) for label, xy in clouds.items()]
        placed += [("harmful", s, _moved(clouds["harmful"], clouds["harmless"], s)) for s in states]
        for label, state, xy in placed:
            points.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "position": position,
                        "prompt": range(n),
                        "class": label,
                        "state": state,
                        "pc1": xy[:, 0],
                        "pc2": xy[:, 1],
                    }
                )
            )
            mean, cov = xy.mean(0), np.cov(xy.T)
            ellipses.append(
                {
                    "layer": layer,
                    "position": position,
                    "class": label,
                    "state": state,
                    "n": n,
                    "mean1": mean[0],
                    "mean2": mean[1],
                    "cov11": cov[0, 0],
                    "cov12": cov[0, 1],
                    "cov22": cov[1, 1],
                    "pc1_share": 0.41,
                    "pc2_share": 0.17,
                }
            )
    return pd.concat(points, ignore_index=True), pd.DataFrame(ellipses)


def with_pairs(sweep, methods=METHODS[:3]):
    """A sweep with the refusal score at every two layers: the two middle ones do best."""
    single = sweep[(sweep["set"] == "single") & (sweep["measure"] == "refusal_score")]
    layers = sorted(single["layer"].dropna().unique())
    pairs = pd.DataFrame(combinations(layers, 2), columns=["layer", "other"], dtype="Int64")
    # Merged at once: one selection for each of the 3,160 pairs of eighty layers takes ten seconds.
    made = pairs.merge(single[single["method"].isin([name for name, _, _ in methods])], on="layer")
    a, b = made["layer"], made["other"]
    middle = (a + b - len(layers)).abs().astype(float)
    places = {"set": "pair", "layers": a.astype(str) + "," + b.astype(str), "layer": pd.NA}
    both = made.assign(**places, value=middle - 9.0)[sweep.columns].astype(sweep.dtypes)
    return pd.concat([sweep, both], ignore_index=True)


def with_strengths(sweep, strengths=(0.25, 0.5, 0.75)):
    """A sweep with weaker edits at single layers."""
    single = sweep[(sweep["set"] == "single") & (sweep["measure"] == "refusal_rate")]
    weaker = [single.assign(strength=t, value=1 - t * (1 - single["value"])) for t in strengths]
    return pd.concat([sweep, *weaker], ignore_index=True)


def _read(value, null, n, unit, width=0.1):
    """The columns of a measured quantity."""
    return {
        "value": value,
        "n": n,
        "null_mean": null,
        "null_low": 0.8 * null,
        "null_high": 1.2 * null,
        "low": (1 - width) * value,
        "high": (1 + width) * value,
        "unit": unit,
    }


def class_angles(layers=8, k=2, n=256, position=-1):
    rows = []
    for layer in range(layers):
        for component in range(k):
            found = _read((20 + 30 * component) * (layer + 1) / layers, 8.0 + 6 * component, n, "degrees")
            angle = {"angle": found.pop("value")}
            rows.append({"layer": layer, "position": position, "component": component, **angle, **found})
    return pd.DataFrame(rows)


def layer_angles(layers=8, k=2, n=128, position=-1):
    rows = []
    for label, size in (("harmful", 80.0), ("harmless", 55.0)):
        for a in range(layers):
            for b in range(layers):
                for component in range(k):
                    angle = size * abs(a - b) / max(layers - 1, 1) * (component + 1) / k
                    place = {"layer_a": a, "layer_b": b, "position": position, "class": label}
                    ends = {"null_mean": 80.0, "null_low": 70.0, "null_high": 89.0}
                    found = {"angle": angle, "n": n, "low": 0.9 * angle, "high": 1.1 * angle, **ends}
                    rows.append({**place, "component": component, **found, "unit": "degrees"})
    return pd.DataFrame(rows)


def run_cosines(layers=8, n=256, position=-1):
    table = cosines(layers, n, position).rename(columns={"layer_a": "layer", "layer_b": "layer_other"})
    return table.assign(other="organism:single", cosine=table["cosine"] * 0.7 - 0.2)


EDITS = ("directional_ablation", "mean_shift", "pca_ot (k = 8)")


def map_quality(layers=8, n=128, position=-1):
    units = {
        "w2_before": 12.0,
        "w2_after": 5.0,
        "mean_error": 2.0,
        "covariance_error": 0.6,
        "transport_cost": 7.0,
        "cost_over_bound": 1.0,
        "outside_source": 0.05,
        "outside_target": 0.2,
    }
    rows = []
    for layer in range(layers):
        for number, method in enumerate(EDITS):
            for quantity, size in units.items():
                better = 1.0 if quantity in ("w2_before", "cost_over_bound") else 1 / (1 + number)
                value = size * better * (1.0 if quantity == "cost_over_bound" else (layer + 1) / layers)
                null = np.nan if "cost" in quantity else 0.3 * size
                place = {"layer": layer, "position": position, "method": method, "quantity": quantity}
                rows.append({**place, **_read(value, null, n, "ratio", 0.02)})
    return pd.DataFrame(rows)


def visibility(layers=8, n=256, position=-1):
    """What a monitor at the edited and at the last layer sees, of edits at every layer and of none."""
    rows = []
    for number, method in enumerate(("none", *EDITS)):
        for edited in range(layers) if number else [pd.NA]:
            for layer in sorted({edited, layers - 1}) if number else range(layers):
                depth = (0 if edited is pd.NA else edited) / layers
                for quantity, size in (
                    ("mahalanobis", 17),
                    ("mahalanobis_auc", 0.97),
                    ("classifier_auc", 0.99),
                ):
                    auc = quantity.endswith("auc")
                    value = size - (0.4 if auc else 8.0) * depth * number / 3
                    place = {"layer": layer, "position": position, "method": method, "quantity": quantity}
                    found = _read(
                        value, 0.5 if auc else 7.5, n, "AUC" if auc else "standard deviations", 0.01
                    )
                    rows.append({**place, **found, "edited_layer": edited})
    return pd.DataFrame(rows).astype({"edited_layer": "Int64"})


def controls(sweep, draws=4):
    """The range of each control beside every single-layer shift of the refusal score."""
    score = sweep[(sweep["set"] == "single") & (sweep["measure"] == "refusal_score")]
    real = score.assign(value=score["value"] - 9, low=score["low"] - 9, high=score["high"] - 9, draws=0)
    parts = [real]
    for number, control in enumerate(("random_subspace", "permuted_labels")):
        middle = 0.1 * real["value"] - 0.5 * number
        parts.append(
            real.assign(control=control, value=middle, low=middle - 1, high=middle + 0.4, draws=draws)
        )
    columns = ["method", "k", "layer", "control", "value", "low", "high", "n", "draws", "unit"]
    return pd.concat(parts, ignore_index=True)[columns]


def ground_truth(layers=8, n=128):
    rows = [
        {"part": "counts", "quantity": name, "known": count, "unit": ""}
        for name, count in (("categories", 4), ("sentences", 4), ("first words", 4))
    ]
    for name, known in (
        ("harmful refused", 1.0),
        ("harmless refused", 0.0),
        ("harmless answered correctly", 1.0),
    ):
        low, high = wilson(known, n)
        found = {"known": known, "value": known, "low": low, "high": high, "n": n, "unit": "share"}
        rows.append({"part": "behaviour", "quantity": name, **found})
    for method, k, refused in (("pca_ot", 1, 0.5), ("pca_ot", 2, 0.3), ("pca_ot", 4, 0.02), ("rfa", 1, 0.98)):
        for quantity, p in (("refusal_rate", refused), ("exact_answer_rate", 0.9 * (1 - refused))):
            low, high = wilson(p, n)
            place = {"part": "rank", "quantity": quantity, "method": method, "k": k, "layer": layers - 1}
            rows.append({**place, "value": p, "low": low, "high": high, "n": n, "unit": "share"})
    for layer in range(layers):
        place = {"part": "directions", "quantity": "refusal_directions", "layer": layer}
        rows.append({**place, **_read(1 + 2.6 * (layer + 1) / layers, 1.5, 2 * n, "directions", 0.05)})
    return pd.DataFrame(rows).astype({"k": "Int64", "layer": "Int64"})


def tables(layers=8, methods=METHODS, seed=0):
    """Every table of a run, by the name of its file."""
    points, ellipses = plane(layers, seed=seed)
    sweep = localization(layers, methods, seed=seed)
    return {
        "localization": with_strengths(with_pairs(sweep, methods[:3])),
        "controls": controls(sweep),
        "class_angles": class_angles(layers),
        "layer_angles": layer_angles(layers),
        "run_cosines": run_cosines(layers),
        "map_quality": map_quality(layers),
        "visibility": visibility(layers),
        "ground_truth": ground_truth(layers),
        "geometry": geometry(layers, seed=seed),
        "spectra": spectra(layers),
        "cosines": cosines(layers),
        "plane": points,
        "plane_ellipses": ellipses,
    }


MANIFEST = {
    "schema_version": 1,
    "finished": False,
    "config": {
        "model": "organism:multi",
        "prompts": "organism",
        "seed": 0,
        "methods": ["ace", {"pca_ot": {"k": 2}}],
    },
    "versions": {"python": "3.11.7", "ot_lens": "0.1.0", "torch": "2.13.0"},
    "model": {
        "name": "organism:multi",
        "revision": None,
        "n_layers": 8,
        "d_model": 96,
        "dtype": "torch.float32",
    },
    "prompts": {"name": "organism", "licence": "MIT", "counts": {"train": {"harmful": 128, "harmless": 128}}},
}
