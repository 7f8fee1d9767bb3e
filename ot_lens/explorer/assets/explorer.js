"use strict";
// State of the page, its controls, its links and its figures. What is chosen stands in the address; the server describes
// a view of it, and plotly draws that here.
window.dash_clientside = window.dash_clientside || {};
(() => {
  const phone = matchMedia("(max-width: 760px)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const fine = matchMedia("(pointer: fine)");
  const FIELDS = ["layers", "ot", "by", "measure", "strength", "tokens", "site"];
  const IDLE = 90;

  let facts = null;
  let chosen = null;
  const set = (id, props) => window.dash_clientside.set_props(id, props);

  const element = (name, properties = {}, ...children) => {
    const { data = {}, aria = {}, ...own } = properties;
    const made = Object.assign(document.createElement(name), own);
    Object.entries(data).forEach(([key, value]) => { made.dataset[key] = value; });
    Object.entries(aria).forEach(([key, value]) => made.setAttribute(key === "role" ? key : `aria-${key}`, value));
    made.append(...children.filter((child) => child !== null));
    return made;
  };

  // ---------------------------------------------------------------- state and address
  const methodOf = (key) => facts.methods.find((method) => method.key === key);

  const normal = (given) => {
    const first = facts.first;
    const layers = [...new Set(given.layers ?? [])].filter((n) => facts.layers.includes(n));
    const strength = Number(given.strength);
    return {
      layers: layers.length ? layers : first.layers,
      ot: methodOf(given.ot) ? given.ot : first.ot,
      by: methodOf(given.by) ? given.by : first.by,
      measure: facts.measures.some((m) => m.key === given.measure) ? given.measure : first.measure,
      strength: given.strength !== null && given.strength !== "" && Number.isFinite(strength) ? Math.min(Math.max(strength, 0), 1) : first.strength,
      tokens: facts.scopes.includes(given.tokens) ? given.tokens : first.tokens,
      site: facts.sites.includes(given.site) ? given.site : first.site,
    };
  };

  const fromAddress = () => {
    const query = new URLSearchParams(location.search);
    const given = Object.fromEntries(FIELDS.map((name) => [name, query.get(name)]));
    const layers = (given.layers ?? "").split(",").filter((text) => /^\d{1,5}$/.test(text)).map(Number);
    return normal({ ...given, layers });
  };

  const query = (state) => FIELDS.map((name) => `${name}=${encodeURIComponent(String(state[name])).replaceAll("%2C", ",").replaceAll("%3A", ":").replaceAll("%2F", "/")}`).join("&");

  const choose = (change, { history = "push" } = {}) => {
    const next = normal({ ...chosen, ...change });
    if (chosen && query(next) === query(chosen)) return;
    chosen = next;
    const address = `${location.pathname}?${query(chosen)}${location.hash}`;
    if (history === "push") window.history.pushState(null, "", address);
    if (history === "replace") window.history.replaceState(null, "", address);
    show();
  };

  const show = () => {
    syncControls();
    syncRuler();
    syncLinks();
    refresh();
    live.changed();
  };

  const syncLinks = () => {
    const search = `?${query(chosen)}`;
    document.querySelectorAll("a[data-export]").forEach((link) => { link.href = link.getAttribute("href").split("?")[0] + search; });
    document.querySelectorAll("a.permalink").forEach((link) => { link.href = `${search}#view-${link.dataset.view}`; });
  };

  // ---------------------------------------------------------------- look: colours and width
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const remembered = () => { try { return localStorage.getItem("ot_lens-theme"); } catch { return null; } };

  // What is left of the depth when the page is scrolled: the row of layers and what is chosen.
  const pin = () => {
    const desk = document.getElementById("desk");
    const top = () => desk.parentElement.style.setProperty("--pinned", `${-(desk.offsetTop - 8)}px`);
    new ResizeObserver(top).observe(desk.parentElement);
  };

  const addTools = () => {
    const button = element("button", { type: "button", className: "theme" });
    const label = () => { button.textContent = isDark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`); };
    button.addEventListener("click", () => {
      const theme = isDark() ? "light" : "dark";
      document.documentElement.dataset.theme = theme;
      try { localStorage.setItem("ot_lens-theme", theme); } catch { /* private windows may refuse */ }
      label();
      refresh();
    });
    label();
    dark.addEventListener("change", () => { label(); refresh(); });
    phone.addEventListener("change", refresh);
    const copy = element("button", { type: "button" }, "Copy link");
    copy.addEventListener("click", () => toClipboard(location.href, copy));
    document.getElementById("tools").append(copy, button);
  };

  const toClipboard = (text, button) => {
    const before = button.textContent;
    navigator.clipboard.writeText(text).then(() => { button.textContent = "Copied"; }, () => { button.textContent = "Not allowed"; })
      .finally(() => setTimeout(() => { button.textContent = before; }, 1200));
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) toClipboard(button.parentElement.querySelector("code").textContent, button);
  });

  // ---------------------------------------------------------------- controls
  const controls = {};

  const select = (id, label, options, change) => {
    const node = element("select", { id }, ...options.map((o) => element("option", { value: o.key }, o.label)));
    node.addEventListener("change", () => change(node.value));
    controls[id] = node;
    return element("label", { className: "field", htmlFor: id }, element("span", {}, element("i", { className: "swatch" }), label), node);
  };

  const ranksOf = (name) => facts.methods.filter((method) => method.name === name);

  const strengthField = (id) => {
    const range = element("input", { type: "range", id, min: 0, max: 1, step: 0.05 });
    const out = element("output", { htmlFor: id });
    let waiting = null;
    range.addEventListener("input", () => {
      out.textContent = range.value;
      clearTimeout(waiting);
      waiting = setTimeout(() => choose({ strength: range.valueAsNumber }, { history: "replace" }), IDLE);
    });
    range.addEventListener("change", () => { clearTimeout(waiting); choose({ strength: range.valueAsNumber }); });
    controls[id] = range;
    return element("label", { className: "field strength", htmlFor: id }, element("span", {}, "strength"), element("span", { className: "range" }, range, out));
  };

  const addControls = () => {
    const names = [...new Map(facts.methods.map((method) => [method.name, { key: method.name, label: method.label }])).values()];
    const box = document.getElementById("choosers");
    box.append(
      select("measure", "along the depth", facts.measures, (measure) => choose({ measure })),
      select("ot", "first edit", names, (name) => choose({ ot: ranksOf(name).at(-1).key })),
      select("k", "k", [], (ot) => choose({ ot })),
      select("by", "second edit", facts.methods.map((m) => ({ key: m.key, label: m.full })), (by) => choose({ by })),
      strengthField("strength"),
      select("tokens", "token scope", facts.scopes.map((key) => ({ key, label: key })), (tokens) => choose({ tokens })),
    );
    if (facts.sites.length) box.append(select("site", "interchanged token", facts.sites.map((key) => ({ key, label: key })), (site) => choose({ site })));
  };

  const syncControls = () => {
    const method = methodOf(chosen.ot);
    controls.measure.value = chosen.measure;
    controls.ot.value = method?.name ?? "";
    const ranks = method ? ranksOf(method.name).filter((m) => m.k !== null) : [];
    controls.k.replaceChildren(...ranks.map((m) => element("option", { value: m.key }, String(m.k))));
    controls.k.value = chosen.ot;
    controls.k.parentElement.hidden = ranks.length === 0;
    controls.by.value = chosen.by;
    [["ot", chosen.ot], ["by", chosen.by]].forEach(([id, key]) => {
      controls[id].parentElement.querySelector(".swatch").style.background = methodOf(key)?.color ?? "transparent";
    });
    controls.tokens.value = chosen.tokens;
    if (controls.site) controls.site.value = chosen.site;
    ["strength", "live-strength"].forEach((id) => {
      if (!controls[id]) return;
      controls[id].value = chosen.strength;
      controls[id].parentElement.querySelector("output").textContent = String(chosen.strength);
    });
  };

  // ---------------------------------------------------------------- the row of layers
  const ruler = { box: null, cells: new Map(), active: null, from: null };

  const addRuler = () => {
    ruler.box = element("div", { id: "ruler", tabIndex: 0, aria: { role: "listbox", multiselectable: "true", label: "Layers", orientation: "horizontal" } });
    const every = Math.max(1, Math.ceil(facts.layers.length / 24));
    facts.layers.forEach((layer, index) => {
      const cell = element("span", { id: `layer-${layer}`, data: { layer }, aria: { role: "option", selected: "false" } },
        element("span", { className: "number" }, index % every === 0 ? String(layer) : ""), element("i"), element("i"));
      cell.setAttribute("aria-label", `layer ${layer}`);
      ruler.cells.set(layer, cell);
      ruler.box.append(cell);
    });
    const box = document.getElementById("ruler-box");
    box.append(element("span", { className: "ruler-name" }, "layer"), ruler.box, element("p", { id: "ruler-said", className: "note" }));
    ruler.box.addEventListener("keydown", onKey);
    ruler.box.addEventListener("pointerdown", onDown);
    ruler.box.addEventListener("pointermove", onMove);
    ruler.box.addEventListener("pointerup", () => { ruler.from = null; });
    ruler.box.addEventListener("pointercancel", () => { ruler.from = null; });
  };

  const between = (a, b) => {
    const [i, j] = [facts.layers.indexOf(a), facts.layers.indexOf(b)];
    const part = facts.layers.slice(Math.min(i, j), Math.max(i, j) + 1);
    return i <= j ? part : part.reverse();
  };

  const cellAt = (event) => {
    const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest("#ruler [data-layer]");
    return cell ? Number(cell.dataset.layer) : null;
  };

  const onDown = (event) => {
    const layer = cellAt(event);
    if (layer === null || event.button !== 0) return;
    event.preventDefault();
    ruler.box.focus();
    ruler.active = layer;
    if (event.ctrlKey || event.metaKey) {
      const rest = chosen.layers.filter((n) => n !== layer);
      choose({ layers: rest.length === chosen.layers.length ? [...rest, layer] : rest });
    } else if (event.shiftKey) choose({ layers: between(chosen.layers[0], layer) });
    else { ruler.from = layer; choose({ layers: [layer] }); }
  };

  const onMove = (event) => {
    const layer = ruler.from === null ? null : cellAt(event);
    if (layer !== null && layer !== ruler.active) { ruler.active = layer; choose({ layers: between(ruler.from, layer) }, { history: "replace" }); }
  };

  const onKey = (event) => {
    const last = facts.layers.length - 1;
    const at = facts.layers.indexOf(ruler.active ?? chosen.layers[0]);
    const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: last, PageDown: at - 5, PageUp: at + 5 }[event.key];
    if (event.key === " ") {
      event.preventDefault();
      const layer = ruler.active ?? chosen.layers[0];
      const rest = chosen.layers.filter((n) => n !== layer);
      choose({ layers: rest.length === chosen.layers.length ? [...rest, layer] : rest });
    } else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      choose({ layers: facts.layers });
    } else if (to !== undefined) {
      event.preventDefault();
      const layer = facts.layers[Math.min(Math.max(to, 0), last)];
      ruler.active = layer;
      if (event.ctrlKey || event.metaKey) syncRuler();
      else choose({ layers: event.shiftKey ? between(chosen.layers[0], layer) : [layer] });
      syncRuler();
    }
  };

  const span = (layers) => {
    const sorted = [...layers].sort((a, b) => a - b);
    const whole = sorted.length > 2 && sorted.every((n, i) => facts.layers.indexOf(n) === facts.layers.indexOf(sorted[0]) + i);
    return whole ? `${sorted[0]}\u2013${sorted.at(-1)}` : sorted.join(", ");
  };

  const syncRuler = () => {
    if (!chosen.layers.includes(ruler.active) && ruler.from === null) ruler.active = ruler.active ?? chosen.layers[0];
    const found = [chosen.ot, chosen.by].map((key) => ({ layers: new Set(facts.localized[key] ?? []), color: methodOf(key)?.color }));
    ruler.cells.forEach((cell, layer) => {
      cell.setAttribute("aria-selected", String(chosen.layers.includes(layer)));
      cell.classList.toggle("first", layer === chosen.layers[0]);
      cell.classList.toggle("active", layer === ruler.active);
      cell.querySelectorAll("i").forEach((dot, i) => { dot.style.background = found[i].layers.has(layer) ? found[i].color : "transparent"; });
    });
    ruler.box.setAttribute("aria-activedescendant", `layer-${ruler.active ?? chosen.layers[0]}`);
    const many = chosen.layers.length > 1;
    const marks = Object.keys(facts.localized).length ? " Dots: layers whose effect lies beyond the controls (Holm over layers)." : "";
    document.getElementById("ruler-said").textContent =
      `Chosen: layer${many ? "s" : ""} ${span(chosen.layers)}.${many ? ` Views of one layer show layer ${chosen.layers[0]}; the live model is edited at all of them.` : ""}${marks}`;
  };

  // ---------------------------------------------------------------- figures
  const merged = (base, patch) => {
    const both = { ...base };
    Object.entries(patch).forEach(([key, value]) => {
      const nested = value !== null && typeof value === "object" && !Array.isArray(value);
      both[key] = nested && base[key] !== null && typeof base[key] === "object" ? merged(base[key], value) : value;
    });
    return both;
  };

  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    return {
      ink: colour("--ink"), mark: colour("--mark"),
      layout: {
        font: { color: colour("--ink"), size: 12 },
        hoverlabel: { bgcolor: colour("--hover"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left" },
      },
    };
  };

  const bands = (layers) => {
    const sorted = [...layers].sort((a, b) => a - b);
    const found = [];
    sorted.forEach((n) => {
      if (found.length && found.at(-1)[1] === n - 1) found.at(-1)[1] = n;
      else found.push([n, n]);
    });
    return found;
  };

  const marks = (layout, colour) => Array.from({ length: layout.meta?.panels ?? 1 }, (_, panel) => bands(chosen.layers).map(([a, b]) => ({
    type: "rect", xref: `x${panel ? panel + 1 : ""}`, yref: `y${panel ? panel + 1 : ""} domain`, x0: a - 0.5, x1: b + 0.5, y0: 0, y1: 1,
    fillcolor: colour, line: { width: 0 }, layer: "below",
  }))).flat();

  // Categories have no corners to draw along.
  const outlines = (data) => data.filter((t) => t.type === "heatmap").map((t) => [t, t.x.indexOf(chosen.site), t.y.indexOf(String(chosen.layers[0]))])
    .filter(([, x, y]) => x >= 0 && y >= 0).map(([t, x, y]) => ({
      type: "rect", xref: t.xaxis, yref: t.yaxis, xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: y, x0: -9, x1: 9, y0: -9, y1: 9,
      line: { color: facts.outline, width: 3 },
    }));

  const shapesOf = ({ name }, { data, layout }, tone) => {
    const { depth, sites } = facts.views[name];
    return [...(layout.shapes ?? []), ...(depth ? marks(layout, tone.mark) : []), ...(sites ? outlines(data) : [])];
  };

  const layoutOf = ({ name }, { figure, narrow }, tone) => {
    // As high as the node says, which has no say in it otherwise.
    const { height, ...own } = phone.matches ? merged(figure.layout, narrow) : figure.layout;
    const layout = merged(merged(own, tone.layout), { autosize: true });
    Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key)).forEach((key) => {
      layout[key] = merged(layout[key], { title: { font: { size: 12.5 } }, tickfont: { size: 11.5 } });
    });
    if (name !== "depth") return { height, layout: { ...layout, dragmode: false } };
    layout.margin = figure.layout.margin;
    layout.selections = [];
    layout.showlegend = !phone.matches && (layout.showlegend ?? true);
    if (!fine.matches) layout.dragmode = false;
    return { height: figure.layout.height, layout };
  };

  // Draw a view as it is to look now: where only marks have moved, only these.
  const paint = async (view) => {
    if (!view.drawn) return;
    const look = JSON.stringify([isDark(), phone.matches, fine.matches]);
    const tone = colours();
    const shapes = shapesOf(view, view.drawn.figure, tone);
    const marked = JSON.stringify(shapes);
    const same = view.painted === view.drawn && view.look === look;
    if (same && view.marked === marked) return;
    Object.assign(view, { painted: view.drawn, look, marked });
    await plotly();
    if (same) { await window.Plotly.relayout(view.graph, { shapes, ...(view.name === "depth" ? { selections: [] } : {}) }); return; }
    const { height, layout } = layoutOf(view, view.drawn, tone);
    view.graph.style.height = `${height}px`;
    await window.Plotly.react(view.graph, view.drawn.figure.data, { ...layout, shapes }, CONFIG);
    if (!view.heard) hear(view);
  };

  // ---------------------------------------------------------------- views: asked for where they are near the screen
  const CONFIG = { displaylogo: false, displayModeBar: false, doubleClick: "reset", showTips: false };
  const PLOTLY = "/_dash-component-suites/plotly/package_data/plotly.min.js";
  const views = [];
  let loading = null;
  const plotly = () => {
    loading ??= new Promise((loaded) => { document.head.append(element("script", { src: PLOTLY, onload: loaded })); });
    return loading;
  };

  const addViews = () => {
    plotly();
    const sized = new ResizeObserver((entries) => entries.forEach(({ target }) => {
      const drawn = target._fullLayout;
      const apart = drawn ? Math.max(Math.abs(target.clientWidth - drawn.width), Math.abs(target.clientHeight - drawn.height)) : 0;
      if (target.clientWidth && apart > 1) window.Plotly.Plots.resize(target);
    }));
    document.querySelectorAll(".of-run").forEach((node) => {
      const [name, run] = [node.dataset.view, Number(node.dataset.run)];
      const code = document.querySelector(`code[data-view="${name}"][data-run="${run}"]`);
      const [graph, missing, note] = [".graph", ".missing", ".note"].map((part) => node.querySelector(part));
      views.push({ node, name, run, graph, missing, note, code, near: false, seen: false });
      sized.observe(graph);
    });
  };

  const watch = () => {
    const watching = (mark, rootMargin) => {
      const watcher = new IntersectionObserver((entries) => {
        entries.forEach(({ isIntersecting, target }) => { views.find((view) => view.node === target)[mark] = isIntersecting; });
        refresh();
      }, { rootMargin });
      views.forEach((view) => watcher.observe(view.node));
    };
    watching("seen", "0px");
    watching("near", "500px");
  };

  // What is on the screen first and together; what is near it afterwards, one after the other, unless more has changed.
  let turn = 0;
  const refresh = async () => {
    turn += 1;
    const mine = turn;
    await Promise.all(views.filter((view) => view.seen).map(update));
    for (const view of views.filter((one) => one.near && !one.seen)) {
      if (mine !== turn) return;
      await update(view);
    }
  };

  const stateOf = (names) => names.map((name) => `${name}=${encodeURIComponent(String(chosen[name]))}`).join("&");

  const update = (view) => {
    const { fields, told } = facts.views[view.name];
    const state = stateOf(fields);
    if (view.state !== state) {
      view.state = state;
      view.underWay = change(view, state, stateOf(fields.filter((name) => !told.includes(name))));
    }
    return view.underWay.then(() => paint(view));
  };

  const change = async (view, state, figure) => {
    view.request?.abort();
    view.request = new AbortController();
    const words = view.figure === figure ? "&figure=no" : "";
    if (words) paint(view);
    const answer = await answered(`/view/${view.run}/${view.name}?${state}${words}`, view.request.signal);
    if (view.state !== state) return;
    if (answer === null) { view.state = null; return; }
    if (answer.figure) Object.assign(view, { drawn: answer.figure, figure });
    view.missing.hidden = answer.missing === "";
    [["missing", answer.missing], ["note", answer.note], ["code", answer.code]].forEach(([part, text]) => {
      if (view[part].textContent !== text) view[part].textContent = text;
    });
  };

  // The answers seen last are kept: going back to a layer asks for nothing.
  const MOST_ANSWERS = 96;
  const answers = new Map();
  const answered = async (address, signal) => {
    if (answers.has(address)) return answers.get(address);
    try {
      const answer = await fetch(address, { signal });
      if (!answer.ok) return null;
      answers.set(address, await answer.json());
    } catch { return null; }
    if (answers.size > MOST_ANSWERS) answers.delete(answers.keys().next().value);
    return answers.get(address);
  };

  // ---------------------------------------------------------------- pointer on figures
  const hear = (view) => {
    view.heard = true;
    const on = (event, listener) => view.graph.on(`plotly_${event}`, (value) => { if (value) listener(value); });
    if (view.name === "depth") ["click", "selected"].forEach((what) => on(what, (value) => onStrip(what, value)));
    if (view.name === "interchange") on("click", onSite);
    if (view.name === "plane") ["click", "hover"].forEach((what) => on(what, (value) => onPlane(what, value, view.run)));
  };

  const onStrip = (what, value) => {
    const near = (x) => facts.layers.reduce((best, n) => (Math.abs(n - x) < Math.abs(best - x) ? n : best), facts.layers[0]);
    const x = value.range && Object.entries(value.range).find(([axis]) => axis.startsWith("x"))?.[1];
    if (what === "selected" && x) {
      const layers = facts.layers.filter((n) => n >= Math.min(...x) && n <= Math.max(...x));
      ruler.active = null;
      // The rectangle goes, even if it chooses nothing new.
      views.filter(({ name }) => name === "depth").forEach((view) => { view.marked = null; });
      refresh();
      choose({ layers: layers.length ? layers : [near((x[0] + x[1]) / 2)] });
    } else if (what === "click" && value.points?.length) { ruler.active = null; choose({ layers: [near(Number(value.points[0].x))] }); }
  };

  const onSite = (value) => {
    const point = value.points?.find((p) => facts.layers.includes(Number(p.y)));
    if (point) { ruler.active = null; choose({ layers: [Number(point.y)], site: String(point.x) }); }
  };

  const onPlane = (what, value, run) => {
    const traces = plotOf("plane", run)?._fullData ?? [];
    const point = value.points?.find((p) => traces[p.curveNumber]?.customdata?.length > p.pointNumber);
    if (!point) return;
    const trace = traces[point.curveNumber];
    const prompt = Number(trace.customdata[point.pointNumber]);
    const label = trace.legendgroup === "harmless" ? "harmless" : "harmful";
    follow(label, prompt, run);
    const text = facts.texts[run]?.[label]?.[prompt];
    if (what === "click" && text !== undefined) live.use(text);
  };

  const plotOf = (view, run) => document.querySelector(`.of-run[data-view="${view}"][data-run="${run}"] .graph`);

  // The same prompt in every panel: where it was and where each edit put it.
  const follow = (label, prompt, run) => {
    reader.label.value = label;
    reader.number.value = prompt;
    const text = facts.texts[run]?.[label]?.[prompt];
    reader.text.textContent = text === undefined ? `${label} prompt ${prompt} (its text is not at hand)` : text;
    facts.runs.forEach((_, number) => {
      const node = plotOf("plane", number);
      if (!node?._fullData) return;
      const places = node._fullData.filter((t) => t.customdata !== undefined && t.customdata !== null && ["harmful", "harmless"].includes(label))
        .filter((t) => (label === "harmless") === (t.legendgroup === "harmless"))
        .map((t) => ({ axis: t.xaxis, at: Array.from(t.customdata, Number).indexOf(prompt), t })).filter((p) => p.at >= 0);
      node._fullData.forEach((ring, index) => {
        if (ring.meta !== "highlight") return;
        const here = places.filter((p) => p.axis === ring.xaxis).map((p) => [p.t.x[p.at], p.t.y[p.at]]);
        const ends = here.length === 1 ? [here[0], here[0]] : here.slice(0, 2);
        window.Plotly.restyle(node, { x: [ends.map((p) => p[0])], y: [ends.map((p) => p[1])], "marker.color": colours().ink, "line.color": colours().ink }, [ring.index ?? index]);
      });
    });
  };

  const reader = {};
  const addReader = () => {
    const box = document.getElementById("plane-reader");
    if (!box) return;
    reader.label = element("select", { id: "plane-class", aria: { label: "Class of the prompt" } }, ...["harmful", "harmless"].map((name) => element("option", { value: name }, name)));
    reader.number = element("input", { type: "number", id: "plane-prompt", min: 0, step: 1, value: 0, aria: { label: "Number of the prompt" } });
    reader.text = element("span", { className: "prompt", aria: { live: "polite" } }, "Hover over a point, or choose a prompt here.");
    const change = () => follow(reader.label.value, Math.max(0, reader.number.valueAsNumber || 0), 0);
    reader.label.addEventListener("change", change);
    reader.number.addEventListener("input", change);
    box.append(element("span", { className: "pick" }, reader.label, reader.number), reader.text);
    if (facts.live.ready) {
      const use = element("button", { type: "button" }, "Try it live");
      use.addEventListener("click", () => {
        const text = facts.texts[0]?.[reader.label.value]?.[reader.number.valueAsNumber || 0];
        if (text !== undefined) { live.use(text); document.getElementById("live-prompt").focus(); }
      });
      box.append(use);
    }
  };

  // ---------------------------------------------------------------- live: one request under way, the last one wins
  const live = {
    number: 0, wanted: {}, busy: {}, asked: {},
    add() {
      if (!facts.live.ready) return;
      const prompt = element("textarea", { id: "live-prompt", rows: 2, maxLength: facts.live.most, spellcheck: false, value: facts.live.examples[0] ?? "" });
      prompt.addEventListener("input", () => { clearTimeout(live.typing); live.typing = setTimeout(live.changed, 250); });
      const some = element("div", { className: "examples" }, ...facts.live.examples.map((text) => {
        const button = element("button", { type: "button" }, text);
        button.addEventListener("click", () => live.use(text));
        return button;
      }));
      document.getElementById("live-form").append(
        element("label", { className: "field prompt", htmlFor: "live-prompt" }, element("span", {}, "prompt"), prompt), some, strengthField("live-strength"), live.furtherField(),
      );
      new IntersectionObserver((entries, watcher) => {
        if (entries.some((entry) => entry.isIntersecting)) { watcher.disconnect(); live.near = true; live.changed(); }
      }, { rootMargin: "300px" }).observe(document.getElementById("view-live"));
    },
    furtherField() {
      const option = (box, text) => element("label", { className: "option" }, box, text);
      live.boxes = facts.live.methods.map(({ key }) => element("input", { type: "checkbox", value: key }));
      live.together = element("input", { type: "checkbox", id: "live-together" });
      const limit = () => {
        const full = live.boxes.filter((box) => box.checked).length >= facts.live.mostFurther;
        live.boxes.forEach((box) => { box.disabled = full && !box.checked; });
        live.changed();
      };
      [...live.boxes, live.together].forEach((box) => box.addEventListener("change", limit));
      const some = facts.live.methods.map((method, i) => option(live.boxes[i], method.full));
      return element("details", { id: "live-further" }, element("summary", {}, "Further edits"),
        element("fieldset", {}, element("legend", {}, `At the same layers, up to ${facts.live.mostFurther}`), ...some),
        option(live.together, "Also apply all edits together"));
    },
    use(text) {
      const prompt = document.getElementById("live-prompt");
      if (prompt && prompt.value !== text) { prompt.value = text; live.near = true; live.changed(); }
    },
    changed() {
      const prompt = document.getElementById("live-prompt");
      if (!prompt || !live.near || !prompt.value.trim()) return;
      const { measure, ...rest } = chosen;
      const further = live.boxes.filter((box) => box.checked).map((box) => box.value);
      const request = { ...rest, prompt: prompt.value, further, together: live.together.checked };
      ["ask-tokens", "ask-answers"].forEach((what) => { live.wanted[what] = request; live.send(what); });
    },
    send(what) {
      if (live.busy[what] || !live.wanted[what]) return;
      live.busy[what] = true;
      document.getElementById("view-live").setAttribute("aria-busy", "true");
      live.number += 1;
      live.asked[what] = live.number;
      set(what, { data: { ...live.wanted[what], number: live.number } });
      live.wanted[what] = null;
      clearTimeout(live.patience);
      live.patience = setTimeout(() => { live.busy = {}; }, 20000);
    },
    told(...all) {
      all.filter((done) => done && live.asked[done.what] === done.number).forEach((done) => {
        live.busy[done.what] = false;
        setTimeout(() => live.send(done.what), 0);
      });
      document.getElementById("view-live").setAttribute("aria-busy", String(Object.values(live.busy).some(Boolean)));
      return window.dash_clientside.no_update;
    },
  };

  // ---------------------------------------------------------------- start
  const start = (given) => {
    if (facts || !given) return window.dash_clientside.no_update;
    facts = given;
    if (!document.getElementById("choosers")) { facts = null; return window.dash_clientside.no_update; }
    addTools();
    pin();
    addControls();
    addRuler();
    addReader();
    live.add();
    chosen = fromAddress();
    window.history.replaceState(null, "", `${location.pathname}?${query(chosen)}${location.hash}`);
    addViews();
    views.filter(({ name }) => name === "depth" || name === "plane").forEach((view) => { view.seen = true; });
    show();
    watch();
    addEventListener("popstate", () => { chosen = fromAddress(); ruler.active = chosen.layers[0]; show(); });
    if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
    return true;
  };

  document.documentElement.lang = "en-GB";
  const kept = remembered();
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  window.dash_clientside.explorer = { start, told: live.told };
})();
