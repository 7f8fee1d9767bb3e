"""Synthetic tables of a run, in the schema of a real one: what the figures and the report are tested on.

The curves are made up but shaped like real ones: refusal flips along the depth, at another layer for each
method, and one destroyed model (low refusal rate, no right answers, large KL) is among them.
"""

from itertools import combinations

import numpy as np
import pandas as pd

FLIPS = {"directional_ablation": 6.5, "rfa": 5.5, "ace": 6.0, "mean_shift": 5.5, "linear_act": 5.0}
RANKS = {1: 5.5, 2: 5.0, 4: 4.5, 8: 4.0}
METHODS = (
    *((name, None, flip) for name, flip in FLIPS.items()),
    *(("pca_ot", k, flip) for k, flip in RANKS.items()),
)
# Modified forms of some methods: share of their KL, and of their effect on refusal.
VARIANTS = {
    ("mean_shift", None, "null_space"): (0.4, 0.9),
    ("mean_shift", None, "gated_threshold"): (0.05, 0.95),
    ("pca_ot", 2, "null_space"): (0.3, 0.8),
    ("pca_ot", 2, "gated"): (0.1, 1.0),
}
STATES = ("directional_ablation", *(f"pca_ot (k = {k})" for k in RANKS))
EDITS = ("directional_ablation", "mean_shift", "pca_ot (k = 8)")
CLASSES = ("harmful", "harmless")


def grid(**axes):
    """One row for each combination."""
    return pd.MultiIndex.from_product(axes.values(), names=axes).to_frame(index=False)


def wilson(p, n, z=1.96):
    centre, root = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - root) / (1 + z * z / n), (centre + root) / (1 + z * z / n)


def _read(value, null, n, unit, width=0.1):
    """The columns of a measured quantity."""
    nulls = {"null_mean": null, "null_low": 0.8 * null, "null_high": 1.2 * null}
    ends = {"low": (1 - width) * value, "high": (1 + width) * value}
    return {"value": value, "n": n, **nulls, **ends, "unit": unit}


def _measured(method, refuses, cost, n, rng):
    """Rows (measure, prompts, value, low, high, unit, interval) of one intervention."""
    destroyed = method == "linear_act"
    knows, left = (1 - refuses) * (0.1 if destroyed else 0.95), 0.99 - (0.6 if destroyed else 0.1) * cost
    chances = (refuses, 0.0, knows, max(0.0, left))
    harmful, harmless, right, still_right = (rng.binomial(n, p) / n for p in chances)
    rates = [
        ("refusal_rate", "harmful", harmful),
        ("refusal_rate", "harmless", harmless),
        ("attack_success_rate", "harmful", 1 - harmful),  # an attack succeeds on whatever is not refused
        ("exact_answer_rate", "harmful", right),
        ("exact_answer_rate", "harmless", still_right),
    ]
    score, kl = 18 * (refuses - 0.5), (6.0 if destroyed else 0.4) * cost**2
    ppl = 1.4 + 3 * kl
    return [
        *((name, prompts, p, *wilson(p, n), "share", "wilson") for name, prompts, p in rates),
        ("refusal_score", "harmful", score, score - 1.1, score + 0.9, "nats", "bootstrap"),
        ("kl", "harmless", kl, 0.8 * kl, 1.3 * kl, "nats", "bootstrap"),
        ("perplexity", "harmless", ppl, 0.95 * ppl, 1.06 * ppl, "perplexity", "bootstrap"),
    ]


def localization(layers=8, methods=METHODS, n=64, seed=0):
    rng = np.random.default_rng(seed)
    rows: list[tuple] = []

    def add(kind, chosen, layer, method, k, refuses, cost):
        key = "none" if kind == "none" else f"{kind}|{chosen}|{method}|{k}"
        edit = (key, kind, chosen, layer, method, k)
        rows.extend((*measured, *edit) for measured in _measured(method, refuses, cost, n, rng))

    add("none", "", pd.NA, "none", pd.NA, 1.0, 0.0)
    for method, k, flip in methods:
        rank = pd.NA if k is None else k
        for layer in range(layers):
            depth = 8 * layer / max(layers - 1, 1)
            refuses = 1 / (1 + np.exp(2.2 * (depth - flip)))
            add("single", str(layer), layer, method, rank, refuses, 0.2 + 0.08 * depth)
        add("all", f"0-{layers - 1}", pd.NA, method, rank, 0.02, 0.9)
    columns = ["measure", "prompts", "value", "low", "high", "unit", "interval"]
    columns += ["key", "set", "layers", "layer", "method", "k"]
    table = pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "k": "Int64"})
    edited = table["set"] != "none"
    settings = {"tokens": "all", "hook": "resid_pre", "control": "", "n": n, "seed": seed, "engine": "bridge"}
    return table.assign(
        strength=edited.astype(float),
        transport=np.where(edited, "harmful_to_harmless", ""),
        fitting=np.where(edited, "independent", ""),
        draw=pd.array([pd.NA] * len(table), dtype="Int64"),
        **settings,
    )


def with_variants(sweep, variants=VARIANTS):
    """A sweep with modified forms of the methods that it holds: cheaper, and a little less effective."""
    parts = [sweep]
    for (method, k, modifier), (share, effect) in variants.items():
        same_rank = sweep["k"].isna() if k is None else sweep["k"] == k
        rows = sweep[(sweep["method"] == method) & same_rank].copy()
        if rows.empty:
            continue
        rows["method"], rows["key"] = f"{method}_{modifier}", rows["key"] + f"|{modifier}"
        start = rows["measure"].map({"kl": 0.0, "perplexity": 1.4, "refusal_score": 9.0})
        factor = rows["measure"].map({"kl": share, "perplexity": share, "refusal_score": effect})
        for end in ("value", "low", "high"):
            rows[end] = (start + factor * (rows[end] - start)).fillna(rows[end])
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def defence(layers=8, n=64, attack_layer=2, seed=0):
    """What `restore_refusal` returns: gates refuse fewer harmless prompts than the plain maps do."""
    methods = {
        ("mean_shift", pd.NA): (0.95, 0.9),
        ("mean_shift_null_space", pd.NA): (0.8, 0.3),
        ("mean_shift_gated_threshold", pd.NA): (0.97, 0.03),
        ("pca_ot_gated_threshold", 2): (0.9, 0.08),
    }
    rng, rows = np.random.default_rng(seed), []

    def add(edits, layer, method, k, refused, wrongly):
        place = {
            "edits": edits,
            "layer": layer,
            "method": method,
            "k": k,
            "key": f"{edits}|{layer}|{method}|{k}",
        }
        for prompts, p in (("harmful", refused), ("harmless", wrongly)):
            value = rng.binomial(n, p) / n
            low, high = wilson(value, n)
            ends = {"value": value, "low": low, "high": high, "unit": "share", "interval": "wilson"}
            rows.append({**place, "measure": "refusal_rate", "prompts": prompts, **ends})

    add("none", pd.NA, "none", pd.NA, 1.0, 0.0)
    add("attack", attack_layer, "mean_shift", pd.NA, 0.05, 0.0)
    for layer in range(attack_layer + 1, max(layers, attack_layer + 2)):
        depth = (layer - attack_layer) / max(layers - attack_layer - 1, 1)
        for (method, k), (refused, wrongly) in methods.items():
            add("defence", layer, method, k, min(1.0, 0.95 + 0.05 * depth), wrongly * depth)
            add("attack and defence", layer, method, k, refused * depth**0.5, wrongly * depth)
    table = pd.DataFrame(rows).astype({"layer": "Int64", "k": "Int64"})
    defended = table["edits"] == "attack and defence"
    sets = np.where(table["edits"] == "none", "none", np.where(defended, "listed", "single"))
    edited = table["edits"] != "none"
    return table.assign(
        set=sets, strength=edited.astype(float), tokens=np.where(edited, "last", ""), hook="resid_pre",
        control="", n=n, seed=seed,
    )  # fmt: skip


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
    start = sweep["measure"].map({"refusal_rate": 1.0, "refusal_score": 9.0, "kl": 0.0})
    single = (sweep["set"] == "single") & start.notna()
    start, rows = start[single], sweep[single]
    weaker = [rows.assign(strength=t, value=start + t * (rows["value"] - start)) for t in strengths]
    return pd.concat([sweep, *weaker], ignore_index=True)


CHOSEN = (("rfa", pd.NA), ("linear_act", pd.NA), ("pca_ot", 1), ("pca_ot", 2))


def variants(sweep, methods=CHOSEN, strengths=(0.25, 0.5, 0.75)):
    """Weaker forms of each method's edit of one layer, and of all layers."""
    parts = []
    for method, k in methods:
        same = sweep["k"].isna() if pd.isna(k) else sweep["k"] == k
        own = sweep[(sweep["method"] == method) & same & (sweep["strength"] == 1)]
        if own.empty:
            continue
        start = own["measure"].map({"refusal_rate": 1.0, "refusal_score": 9.0, "perplexity": 1.4}).fillna(0.0)
        for key in [own["key"].iloc[0], own["key"].iloc[-1]]:
            rows, base = own[own["key"] == key], start[own["key"] == key]
            for t in strengths:
                changed = rows.assign(value=base + t * (rows["value"] - base), strength=t, key=f"{key}|{t}")
                parts.append(changed.assign(of=key, axis="strength", level=f"{t:g}"))
    columns = [*sweep.columns, "of", "axis", "level"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


LABELS = (
    ("linear_act", pd.NA, "Linear-AcT"),
    ("pca_ot", 1, "PCA-OT (k = 1)"),
    ("pca_ot", 2, "PCA-OT (k = 2)"),
)
COHERENT, ATTACK = "coherent success", "attack success"
LEVELS = ("k 4", "k 8", "k 64", "lift subspace", "lift discard", "tokens last")


def _of_pca_ot(few, layer):
    """Claim, comparison, quantity, edit and reference, of PCA-OT alone."""
    for other in ("RFA (every block), direction of layer 4", "Linear-AcT, all layers, sequential"):
        yield from (("gain", "at equal perplexity", quantity, few, other) for quantity in (COHERENT, ATTACK))
        yield "gain", "at equal perplexity, mean over strengths", COHERENT, few, other
    if few == layer:
        yield from (("sensitivity", level, COHERENT, f"{layer}, {level}", layer) for level in LEVELS)


def _compared(label, pca_ot):
    """The same of every claim."""
    layer, late = f"{label}, layer 4", f"{label}, layer 7"
    for few in (layer, f"{label}, layers 3,5"):
        for whole in ("all layers", "all layers, sequential"):
            yield from (("layers", "few minus all", q, few, f"{label}, {whole}") for q in (COHERENT, ATTACK))
        for task in ("mmlu, acc", "arc_challenge, acc", "truthfulqa_mc1, acc"):
            yield "capability", task, "accuracy", few, "unedited"
        yield "success", "attack minus coherent", "share of prompts", few, few
        yield "agreement", "judge against phrases", "Cohen's kappa", few, few
        yield from _of_pca_ot(few, layer) if pca_ot else ()
    yield from (("depth", "inside minus outside", q, layer, late) for q in (COHERENT, ATTACK))
    yield from (("collapse", "band and end", q, layer, late) for q in (COHERENT, "degenerate answers"))


def claims(n=64, seed=0):
    """Comparisons of every claim, with every verdict."""
    names = ("method", "k", "claim", "comparison", "quantity", "edit", "reference")
    rows = [
        (method, k, *found) for method, k, label in LABELS for found in _compared(label, method == "pca_ot")
    ]
    table, rng = pd.DataFrame(rows, columns=names).astype({"k": "Int64"}), np.random.default_rng(seed)
    value, half = rng.uniform(-0.4, 0.6, len(table)), rng.uniform(0.08, 0.2, len(table))
    said = np.select([value > half, value < -half], ["supported", "not supported"], "cannot tell")
    margin = np.where(table["claim"] == "agreement", 0.6, 0.05)
    ends = {"low": np.maximum(-1, value - half), "high": np.minimum(1, value + half)}
    return table.assign(value=value, **ends, margin=margin, verdict=said, p_holm=0.03, n=n)


def geometry(layers=8, n=128, position=-1, seed=0):
    depth = (np.arange(layers) + 1) / layers
    location, bures = 40 * depth**2, 6 * depth**1.5 + 0.5
    quantities = {
        "w2_location": (location, 0.8 * depth, "activation²"),
        "w2_bures": (bures, 0.7 * bures, "activation²"),
        "w2_squared": (location + bures, 0.8 * depth + 0.7 * bures, "activation²"),
        "auc_direction": (0.5 + 0.5 * depth**0.3, 0.5, "AUC"),
        "gap": (3 * depth, 0.4, "activation"),  # as a user may register
    }
    sizes = {"effective_rank": (18, 22), "participation_ratio": (6, 9)}
    for name, of_classes in sizes.items():
        for label, size in zip(CLASSES, of_classes, strict=True):
            quantities[f"{name}_{label}"] = (size * (1 + 2 * depth), size * (1.1 + 2 * depth), "dimensions")
    table = grid(layer=range(layers), quantity=quantities)
    value, null = (np.stack([q[i] + 0 * depth for q in quantities.values()], 1).ravel() for i in (0, 1))
    wobble = 1 + 0.03 * np.random.default_rng(seed).standard_normal(len(table))
    nulls = {"null_mean": null, "null_low": 0.85 * null, "null_high": 1.2 * null}
    ends = {"value": value * wobble, "low": 0.9 * value, "high": 1.12 * value}
    units = table["quantity"].map({name: unit for name, (_, _, unit) in quantities.items()})
    return table.assign(position=position, n=n, **nulls, **ends, unit=units)


def spectra(layers=8, components=95, n=128, position=-1):
    table = grid(layer=range(layers), **{"class": CLASSES}, component=range(components))
    slope = table["class"].map({"harmful": 1.3, "harmless": 1.0})
    value = (1 + table["layer"]) * (table["component"] + 1.0) ** -slope
    share = value / value.groupby([table["layer"], table["class"]]).transform("sum")
    ends = {"low": 0.9 * value, "high": 1.15 * value}
    return table.assign(position=position, eigenvalue=value, share=share, n=n, **ends, unit="activation²")


def massive(layers=8, n=128):
    """At the first and the last token; coordinate 5 is rogue."""
    of_class = {"norm": 60, "largest": 40, "median_ratio": 300, "norm_share": 0.5, "massive_share": 0.1}
    of_both = {"w2_squared": 40, "w2_share": 0.6, "pc1_share": 0.5, "variance_share": 0.4}
    tokens = grid(
        layer=range(layers),
        position=["first", "-1"],
        robust=["none"],
        **{"class": CLASSES},
        quantity=of_class,
    )
    both = grid(
        layer=range(layers), position=["-1"], robust=["none", "exclude", "scale"], **{"class": ["both"]},
        quantity=of_both,
    )  # fmt: skip
    rogue = both.query("robust == 'exclude' and quantity == 'w2_share'").assign(quantity="rogue_ratio")
    table = pd.concat([tokens, both, rogue], ignore_index=True)
    value = table["quantity"].map(of_class | of_both | {"rogue_ratio": 200.0})
    value *= (1 + table["layer"]) / layers / np.where(table["robust"] == "none", 1, 4)
    null = (0.3 * value).where(table["quantity"].str.startswith("w2"))
    found = _read(value, null, n, "share", 0.01)
    return table.assign(coordinate=5, **found).astype({"coordinate": "Int64"})


def localizers(layers=8, n=64):
    """Blocks make refusal early, and edits change it late; one localizer finds it everywhere."""
    kinds = {
        "block_left_out": ("Block left out", "makes it", "band", (1, 2)),
        "edit_last": ("Mean shift, last token", "can be changed", "band", (layers - 2, layers - 1)),
        "probe": ("Probe", "can be seen", "spread", (pd.NA, pd.NA)),
    }
    parts = []
    for number, (name, (label, says, verdict, ends)) in enumerate(kinds.items()):
        rows = grid(layer=range(layers))
        inside = rows["layer"].between(*ends) if verdict == "band" else rows["layer"] >= 0
        rows = rows.assign(**_read(0.2 + 3.0 * inside, 0.0, n, "refusal score (nats)"))
        rows = rows.assign(
            null_low=-0.3, null_high=0.3, localizer=name, label=label, says=says, verdict=verdict
        )
        band = dict(zip(("band_first", "band_last", "band_low", "band_high"), 2 * ends, strict=True))
        counts = {"n_harmful": n // 2, "n_harmless": n // 2}
        parts.append(
            rows.assign(**band, share=0.8, effect=0.001, spread=0.01, **counts, recommended=number == 0)
        )
    whole = ("band_first", "band_last", "band_low", "band_high", "planted_first", "planted_last")
    table = pd.concat(parts, ignore_index=True).assign(planted_first=1, planted_last=2)
    return table.astype(dict.fromkeys(whole, "Int64"))


def contributions(layers=8, heads=4, n=64):
    """Two heads in the middle and the MLP behind them write the direction; the other parts are noise."""
    parts = [("embedding", pd.NA, pd.NA), ("stream", pd.NA, pd.NA)]
    for layer in range(layers):
        parts += [
            ("attention", layer, pd.NA),
            *(("head", layer, head) for head in range(heads)),
            ("mlp", layer, pd.NA),
        ]
    components = pd.DataFrame(parts, columns=["component", "layer", "head"])
    rng = np.random.default_rng(0)
    value = rng.normal(scale=0.2, size=len(components))
    writes = (components["layer"] == layers // 2) & components["head"].isin([1, 2])
    writes |= (components["layer"] == layers // 2) & (components["component"] == "attention")
    writes |= (components["layer"] == layers // 2 + 1) & (components["component"] == "mlp")
    value = value + 2.5 * writes.to_numpy(bool, na_value=False)
    tests = {
        "null_mean": 0.0,
        "null_low": -0.5,
        "null_high": 0.5,
        "p_value": np.where(np.abs(value) > 1, 0.001, 0.4),
    }
    tests |= {"p_holm": np.where(np.abs(value) > 1, 0.02, 1.0)}
    rows = [
        components.assign(
            prompts=label, value=share * value, low=share * value - 0.2, high=share * value + 0.2, n=n
        )
        for label, share in (("harmful", 0.75), ("harmless", -0.25), ("difference", 1.0))
    ]
    rows[2] = rows[2].assign(**tests, n=2 * n)
    table = pd.concat(rows, ignore_index=True).assign(unit="activation", tokens="last", at_layer=layers - 1)
    return table.astype({"layer": "Int64", "head": "Int64", "at_layer": "Int64"})


def readout(layers=8, k=5, axes=2, n=128):
    """Refusals are written, and greetings kept down, the more the later the layer."""
    words = {
        "top": ["sorry", " that", "</s>", "alas", "$work"],
        "bottom": ["hello", "howdy", "é", "問い", "a" * 20],
    }
    vectors = [("direction", "", pd.NA)]
    vectors += [("axis", EDITS[-1], number) for number in range(axes)] + [("axis", EDITS[0], 0)]
    vectors += [("displacement", method, pd.NA) for method in EDITS]
    parts = []
    for kind, method, number in vectors:
        table = grid(layer=range(layers), side=words, rank=range(1, k + 1))
        sign, rank = table["side"].map({"top": 1, "bottom": -1}), table["rank"]
        size = (4 + 12 * (table["layer"] + 1) / layers) / rank**0.5
        token = [words[side][r - 1] for side, r in zip(table["side"], rank, strict=True)]
        null = {"null_mean": sign * 5 / rank**0.5, "null_low": sign * 5 - 2, "null_high": sign * 5 + 3}
        about = {"kind": kind, "method": method, "number": number, "position": -1, "length": 9.0}
        sizes = {"n_harmful": n, "n_harmless": n, "draws": 199, "unit": "logits", "seed": 0}
        found = {
            "logit_change": sign * size,
            "z": sign * size / 2,
            "token": token,
            "token_id": rank + 10 * (sign > 0),
        }
        parts.append(table.assign(**about, **found, **null, **sizes))
    return pd.concat(parts, ignore_index=True).astype({"number": "Int64"})


def harm(layers=8, n=128):
    """The directions part in the last layers, where refusal can go and harm stay."""
    depth = (np.arange(layers) + 1) / layers
    late = np.arange(layers) >= layers - 2
    empty = {"direction": "", "action": "", "method": "", "prompts": "", "position": "", "probe_layer": pd.NA}
    parts = []

    def add(part, quantity, value, null, unit, **about):
        rows = pd.DataFrame({"layer": range(layers)}).assign(**_read(value, null, n, unit))
        parts.append(rows.assign(**{**empty, "part": part, "quantity": quantity, **about}))

    add("cosine", "cosine", 0.9 * depth * (1 - 0.3 * late), 0.1, "cosine")
    for name in ("harm", "refusal"):
        left = np.where(late & (name == "refusal"), 0.95, 1 - 0.9 * depth)
        add("separability", "auc", 0.5 + 0.5 * depth, 0.5, "AUC", direction=name, position="-3")
        for action in ("ablate", "ace", "add"):
            edit = {"direction": name, "action": action}
            for quantity, value in (("refused", 1 - depth), ("named_harmful", left)):
                add("behaviour", quantity, value, 0.97, "share", **edit, prompts="harmful")
            add("effect", "refusal_score", -9 * depth, 0.1, "nats", **edit, prompts="harmful")
            for position in ("-3", "-1"):
                probe = {"position": position, "probe_layer": layers - 1}
                add("survival", "auc", 0.5 + left / 2, 0.5, "AUC", **edit, **probe)
    for quantity in ("refused", "named_harmful"):
        add("behaviour", quantity, 1.0, np.nan, "share", method="none", prompts="harmful")
        parts[-1] = parts[-1].head(1).assign(layer=pd.NA)
    table = pd.concat(
        [rows.astype({"layer": "Int64", "probe_layer": "Int64"}) for rows in parts], ignore_index=True
    )
    return table.assign(draws=10, seed=0)


def interchange(layers=8, n=32):
    """The answer follows the instruction in the lower half and the last token in the upper half."""
    tokens = {"-4": "instruction", "-3": "instruction", "-2": "<|im_end|>", "-1": "\\n"}
    table = grid(
        kind=("interchange",),
        module=("block", "mlp"),
        patched=CLASSES,
        layer=range(layers),
        position=tokens,
    )
    upper = table["layer"] >= layers // 2
    follows = np.where(table["position"] == "-1", upper, ~upper & (table["position"] == "-4"))
    share = follows * np.where(table["module"] == "block", 0.8, 0.2)
    gap = np.where(table["patched"] == "harmful", -5.0, 5.0)
    return table.assign(
        token=table["position"].map(tokens), **_read(share * gap, 0.05, n, "nats", 0.3),
        gap=gap, share=share, p_value=np.where(follows, 2e-4, 0.5), p_adjusted=np.where(follows, 1e-3, 1.0),
        kl=np.nan, n_left_out=np.where(table["position"] == "-4", 2, 0), replaced=1.0, partners="random",
        draws=1, null_draws=1, leaving="", seed=0, engine="single_pass",
    )  # fmt: skip


def cosines(layers=8, n=128, position=-1):
    table = grid(layer_a=range(layers), layer_b=range(layers))
    apart = (table["layer_a"] - table["layer_b"]).abs()
    ends = {"low": np.nan, "high": np.nan, "null_mean": 0.0, "null_low": -0.12, "null_high": 0.12}
    return table.assign(
        position=position, cosine=np.exp(-apart / (0.35 * layers)) - 0.1 * (apart > 0), n=n, **ends
    )


def run_cosines(layers=8, n=256, position=-1):
    table = cosines(layers, n, position).rename(columns={"layer_a": "layer", "layer_b": "layer_other"})
    return table.assign(other="organism:single", cosine=table["cosine"] * 0.7 - 0.2)


def class_angles(layers=8, k=2, n=256, position=-1):
    table = grid(layer=range(layers), component=range(k))
    value = (20 + 30 * table["component"]) * (table["layer"] + 1) / layers
    found = _read(value, 8.0 + 6 * table["component"], n, "degrees")
    return table.assign(position=position, **found).rename(columns={"value": "angle"})


def layer_angles(layers=8, k=2, n=128, position=-1):
    table = grid(**{"class": CLASSES}, layer_a=range(layers), layer_b=range(layers), component=range(k))
    apart = (table["layer_a"] - table["layer_b"]).abs() / max(layers - 1, 1)
    size = table["class"].map({"harmful": 80.0, "harmless": 55.0})
    found = _read(size * apart * (table["component"] + 1) / k, 80.0, n, "degrees")
    found |= {"null_low": 70.0, "null_high": 89.0}
    return table.assign(position=position, **found).rename(columns={"value": "angle"})


def _similarities():
    """Quantity, class, and how fast it falls with the distance of layers."""
    table = grid(quantity=["linear_cka", "projection_kernel"], **{"class": CLASSES})
    return table.assign(fall=[0.5, 1.0, 1.5, 2.5], null=[0.0, 0.0, 0.05, 0.05])


def _alike(table, n):
    null = table.pop("null")
    found = _read(
        table.pop("size"), null, n, np.where(table["quantity"] == "linear_cka", "CKA", "share"), 0.03
    )
    return table.assign(**found | {"null_low": null - 0.03, "null_high": null + 0.04})


def layer_similarity(layers=8, n=128, position=-1):
    table = grid(layer_a=range(layers), layer_b=range(layers)).merge(_similarities(), how="cross")
    apart = (table["layer_a"] - table["layer_b"]).abs() / max(layers - 1, 1)
    return _alike(table.assign(position=position, size=np.exp(-table.pop("fall") * apart)), n)


def model_similarity(layers=8, n=128, position=-1):
    """Under an edit in the middle, alike below it; and against a base model, ever less alike."""
    edited = layers // 2
    kinds = [("edit", "mean_shift", edited), ("edit", "pca_ot (k = 8)", edited), ("base", "smollm2", pd.NA)]
    compared = pd.DataFrame(kinds, columns=["comparison", "method", "edited_layer"])
    table = grid(layer=range(layers)).merge(_similarities(), how="cross").merge(compared, how="cross")
    start = table["edited_layer"].fillna(0).astype(float)
    depth = (table["layer"] - start).clip(lower=0) / layers
    table = table.assign(position=position, size=np.exp(-table.pop("fall") * depth))
    return _alike(table, n).astype({"edited_layer": "Int64"})


def ablated_heads(n=64, heads=8, random_sets=39):
    """Eight heads carry refusal when they are replaced by a mean, and half of it when resampled."""
    sizes = {"mean": (-7.0, 0.4, 0.07), "resample": (-3.5, 0.2, 0.3)}
    measured = [("refusal_score", "harmful"), ("refusal_score", "harmless"), ("kl", "harmless")]
    names = ", ".join(f"{layer}.{head}" for layer in (5, 6) for head in range(heads // 2))
    rows = []
    for mode, changes in sizes.items():
        about = {"mode": mode, "heads": names, "n_heads": heads, "random_sets": random_sets, "n": n}
        for (measure, prompts), change in zip(measured, changes, strict=True):
            own = {**about, "measure": measure, "prompts": prompts, "unit": "nats", "engine": "single_pass"}
            ends = {"change": change, "change_low": change - 0.3, "change_high": change + 0.3}
            null = {"null_mean": 0.02, "null_low": 0.0 if measure == "kl" else -0.5, "null_high": 0.6}
            p = 0.025 if prompts == "harmful" else np.nan
            rows.append({**own, **ends, **null, "set": "chosen", "value": 6.0 + change, "p_value": p})
            rows.append({**own, "set": "random", "value": 6.0, "change": 0.02, "heads": ""})
            rows.append({**own, "set": "unedited", "value": 6.0, "change": 0.0, "heads": "", "n_heads": 0})
    return pd.DataFrame(rows)


def languages(layers=8, n=64):
    """Three languages; the last one refuses nothing, so that nothing transfers to it."""
    names = ("english", "german", "latin")
    plain = pd.DataFrame(
        {"fitted_in": "", "measured_in": names, "method": "none", "quantity": "refusal_score"}
    )
    edits = grid(fitted_in=names, measured_in=names, method=["mean_shift", "pca_ot"], layer=range(layers))
    own, latin = edits["fitted_in"] == edits["measured_in"], edits["measured_in"] == "latin"
    size = np.where(own, 1.0, np.where(latin, 0.02, 0.6)) * np.where(own & latin, 0.0, 8.0)
    size *= (edits["layer"] + 1) / layers
    effects = edits.assign(quantity="effect", value=size, low=size - 0.5, high=size + 0.5)
    effects = effects.assign(null_mean=0.0, null_low=-0.4, null_high=0.4)
    share = effects[~own].assign(quantity="share", value=np.where(latin, np.nan, 0.6)[~own])
    share = share.assign(
        low=share["value"] - 0.1, high=share["value"] + 0.1, null_low=np.nan, null_high=np.nan
    )
    scores = effects.assign(quantity="refusal_score", value=6.0 - size, low=5.0 - size, high=7.0 - size)
    pairs = pd.DataFrame([("english", "german"), ("english", "latin"), ("german", "latin")])
    pairs = pairs.set_axis(["fitted_in", "measured_in"], axis=1).merge(grid(layer=range(layers)), how="cross")
    cosine = np.where(pairs["measured_in"] == "latin", 0.1, 0.7)
    pairs = pairs.assign(quantity="cosine", method="none", value=cosine, low=cosine - 0.1, high=cosine + 0.1)
    pairs = pairs.assign(null_mean=0.0, null_low=-0.3, null_high=0.3)
    table = pd.concat([plain.assign(value=6.0, low=5.0, high=7.0), scores, effects, share, pairs])
    units = {"refusal_score": "nats", "effect": "nats", "share": "share", "cosine": "cosine"}
    k = table["method"].map({"pca_ot": 2})
    table = table.assign(n=n, k=k, unit=table["quantity"].map(units)).reset_index(drop=True)
    return table.astype({"k": "Int64", "layer": "Int64"})


def map_quality(layers=8, n=128, position=-1):
    sizes = {"w2_before": 12.0, "w2_after": 5.0, "mean_error": 2.0, "covariance_error": 0.6}
    sizes |= {"transport_cost": 7.0, "cost_over_bound": 1.0, "outside_source": 0.05, "outside_target": 0.2}
    table = grid(layer=range(layers), method=EDITS, quantity=sizes)
    size, quantity = table["quantity"].map(sizes), table["quantity"]
    better = 1 / (1 + table["method"].map(EDITS.index))
    value = size * better.where(~quantity.isin(["w2_before", "cost_over_bound"]), 1.0)
    value *= ((table["layer"] + 1) / layers).where(quantity != "cost_over_bound", 1.0)
    null = (0.3 * size).where(~quantity.str.contains("cost"))
    return table.assign(position=position, **_read(value, null, n, "ratio", 0.02))


def visibility(layers=8, n=256, position=-1):
    """What a monitor at the edited and at the last layer sees, of edits at every layer and of none."""
    places = [(layer, "none", pd.NA) for layer in range(layers)]
    for method in EDITS:
        places += [(at, method, edited) for edited in range(layers) for at in sorted({edited, layers - 1})]
    sizes = {"mahalanobis": 17, "mahalanobis_auc": 0.97, "classifier_auc": 0.99}
    table = pd.DataFrame(places, columns=["layer", "method", "edited_layer"])
    table = table.merge(pd.DataFrame(sizes.items(), columns=["quantity", "size"]), how="cross")
    auc = table["quantity"].str.endswith("auc")
    number = table["method"].map(("none", *EDITS).index)
    depth = table["edited_layer"].fillna(0).astype(float) / layers
    value = table.pop("size") - np.where(auc, 0.4, 8.0) * depth * number / 3
    found = _read(
        value, pd.Series(np.where(auc, 0.5, 7.5)), n, np.where(auc, "AUC", "standard deviations"), 0.01
    )
    return table.assign(position=position, **found).astype({"edited_layer": "Int64"})


def _cloud(rng, label, layer, n):
    spread = np.diag([1.2, 0.7]) if label == "harmful" else np.array([[0.8, 0.3], [0.0, 1.0]])
    centre = np.array([1.0 + 0.5 * layer, 0.3]) * (1 if label == "harmful" else -1)
    return centre + rng.standard_normal((n, 2)) @ spread


def _moved(points, target, state):
    if state == "directional_ablation":
        return points * np.array([0.0, 1.0])
    shifted = points - points.mean(0)
    if state.startswith("pca_ot"):
        own, wanted = (np.linalg.cholesky(np.cov(xy.T)) for xy in (points, target))
        shifted = shifted @ np.linalg.inv(own).T @ wanted.T
    return shifted + target.mean(0)


def plane(layers=8, n=64, states=STATES, position=-1, seed=0):
    """Both tables of the principal plane: points and ellipses."""
    rng = np.random.default_rng(seed)
    points, ellipses = [], []
    for layer in range(layers):
        clouds = {label: _cloud(rng, label, layer, n) for label in CLASSES}
        placed = [(label, "before", xy) for label, xy in clouds.items()]
        placed += [("harmful", s, _moved(clouds["harmful"], clouds["harmless"], s)) for s in states]
        for label, state, xy in placed:
            place = {"layer": layer, "position": position, "class": label, "state": state}
            points.append(pd.DataFrame({**place, "prompt": range(n), "pc1": xy[:, 0], "pc2": xy[:, 1]}))
            (mean1, mean2), cov = xy.mean(0), np.cov(xy.T)
            covariance = {"cov11": cov[0, 0], "cov12": cov[0, 1], "cov22": cov[1, 1]}
            ellipses.append({**place, "n": n, "mean1": mean1, "mean2": mean2, **covariance})
    return pd.concat(points, ignore_index=True), pd.DataFrame(ellipses).assign(pc1_share=0.41, pc2_share=0.17)


def controls(sweep, draws=4):
    """The range of each control beside every single-layer shift of the refusal score."""
    score = sweep[(sweep["set"] == "single") & (sweep["measure"] == "refusal_score")]
    real = score.assign(value=score["value"] - 9, low=score["low"] - 9, high=score["high"] - 9, draws=0)
    tables = [real]
    for number, control in enumerate(("random_subspace", "permuted_labels")):
        middle = 0.1 * real["value"] - 0.5 * number
        ends = {"value": middle, "low": middle - 1, "high": middle + 0.4}
        tables.append(real.assign(control=control, draws=draws, **ends))
    columns = ["method", "k", "layer", "control", "value", "low", "high", "n", "draws", "unit"]
    return pd.concat(tables, ignore_index=True)[columns]


def ground_truth(layers=8, n=128):
    def share(part, quantity, p, **more):
        low, high = wilson(p, n)
        ends = {"value": p, "low": low, "high": high, "n": n, "unit": "share"}
        return {"part": part, "quantity": quantity, **ends, **more}

    names = ("categories", "sentences", "first words")
    rows = [{"part": "counts", "quantity": name, "known": 4, "unit": ""} for name in names]
    known = {"harmful refused": 1.0, "harmless refused": 0.0, "harmless answered correctly": 1.0}
    rows += [share("behaviour", name, p, known=p) for name, p in known.items()]
    for method, k, refused in (("pca_ot", 1, 0.5), ("pca_ot", 2, 0.3), ("pca_ot", 4, 0.02), ("rfa", 1, 0.98)):
        place = {"method": method, "k": k, "layer": layers - 1}
        rows.append(share("rank", "refusal_rate", refused, **place))
        rows.append(share("rank", "exact_answer_rate", 0.9 * (1 - refused), **place))
    for layer in range(layers):
        found = _read(1 + 2.6 * (layer + 1) / layers, 1.5, 2 * n, "directions", 0.05)
        rows.append({"part": "directions", "quantity": "refusal_directions", "layer": layer, **found})
    return pd.DataFrame(rows).astype({"k": "Int64", "layer": "Int64"})


def tables(layers=8, methods=METHODS, seed=0):
    """Every table of a run, by the name of its file."""
    points, ellipses = plane(layers, seed=seed)
    sweep = localization(layers, methods, seed=seed)
    return {
        "localization": with_strengths(with_pairs(with_variants(sweep), methods[:3])),
        "defence": defence(layers),
        "controls": controls(sweep),
        "class_angles": class_angles(layers),
        "layer_angles": layer_angles(layers),
        "languages": languages(layers),
        "layer_similarity": layer_similarity(min(layers, 32)),  # a study compares no more
        "model_similarity": model_similarity(layers),
        "run_cosines": run_cosines(layers),
        "map_quality": map_quality(layers),
        "visibility": visibility(layers),
        "ground_truth": ground_truth(layers),
        "claims": claims(),
        "variants": variants(sweep),
        "geometry": geometry(layers, seed=seed),
        "spectra": spectra(layers),
        "localizers": localizers(layers),
        "contributions": contributions(layers),
        "ablated_heads": ablated_heads(),
        "interchange": interchange(layers),
        "massive": massive(layers),
        "readout": readout(layers),
        "harm": harm(layers),
        "cosines": cosines(layers),
        "plane": points,
        "plane_ellipses": ellipses,
    }


MANIFEST = {
    "schema_version": 1,
    "finished": False,
    "config": {
        "model": "organism:multi", "prompts": "organism", "seed": 0, "methods": ["ace", {"pca_ot": {"k": 2}}],
    },
    "versions": {"python": "3.11.7", "ot_lens": "0.1.0", "torch": "2.13.0"},
    "model": {
        "name": "organism:multi", "revision": None, "n_layers": 8, "d_model": 96, "dtype": "torch.float32",
    },
    "prompts": {"name": "organism", "licence": "MIT", "counts": {"train": {"harmful": 128, "harmless": 128}}},
}  # fmt: skip
