"use strict";
(() => {
  const narrow = matchMedia("(max-width: 999px)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const exact = matchMedia("(pointer: fine)");

  const merged = (base, patch) => {
    const both = { ...base };
    for (const [key, value] of Object.entries(patch)) {
      const nested = value !== null && typeof value === "object" && !Array.isArray(value);
      both[key] = nested && typeof base[key] === "object" ? merged(base[key], value) : value;
    }
    return both;
  };

  const colors = () => {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    return {
      font: { color: color("--ink") },
      hoverlabel: { bgcolor: color("--hover"), bordercolor: color("--line"), font: { color: color("--ink") }, align: "left" },
    };
  };

  const layoutOf = (content) => {
    const layout = narrow.matches ? merged(content.figure.layout, content.narrow) : content.figure.layout;
    return merged(merged(layout, colors()), { dragmode: exact.matches ? "zoom" : false, autosize: true });
  };

  const settings = (name) => ({
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: name },
  });

  // Plotly's legend and slider cannot be reached by keyboard: buttons and a range input stand in for them.
  const NS = "http://www.w3.org/2000/svg";
  const shapes = JSON.parse(document.getElementById("shapes").textContent);
  const dashes = { solid: "", dash: "6 3", dot: "1.5 2.5", dashdot: "6 2.5 1.5 2.5" };

  const part = (name, attributes) => {
    const element = document.createElementNS(NS, name);
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    return element;
  };

  const icon = (trace) => {
    const svg = part("svg", { viewBox: "-15 -7 30 14", width: 30, height: 14, "aria-hidden": "true" });
    const mode = trace.mode ?? "";
    if (trace.fill && !trace.line?.width) svg.append(part("rect", { x: -12, y: -4, width: 24, height: 8, fill: trace.fillcolor }));
    else if (mode.includes("lines")) svg.append(part("path", { d: "M-14 0H14", stroke: trace.line.color, "stroke-width": 2, "stroke-dasharray": dashes[trace.line.dash] ?? "" }));
    if (mode.includes("markers")) svg.append(part("path", { d: shapes[trace.marker.symbol] ?? shapes.circle, fill: trace.marker.color, transform: "scale(.85)" }));
    return svg;
  };

  const show = (node, state) => {
    const visible = node.data.map((trace, i) => state.inLayer(i) && !state.hidden.has(trace.legendgroup ?? trace.name));
    Plotly.restyle(node, { visible }, node.data.map((_, i) => i));
  };

  const addLegend = (node, content, state) => {
    const entries = content.figure.data.filter((trace, i) => trace.showlegend !== false && trace.visible !== false);
    if (content.figure.layout.showlegend === false || !entries.length) return;
    const list = Object.assign(document.createElement("div"), { className: "legend" });
    list.setAttribute("role", "group");
    list.setAttribute("aria-label", "Show or hide");
    entries.forEach((trace) => {
      const group = trace.legendgroup ?? trace.name;
      const button = Object.assign(document.createElement("button"), { type: "button" });
      button.setAttribute("aria-pressed", "true");
      const label = document.createElement("span");
      label.textContent = new DOMParser().parseFromString(trace.name, "text/html").body.textContent;
      button.append(icon(trace), label);
      button.addEventListener("click", () => {
        const hide = !state.hidden.has(group);
        if (hide) state.hidden.add(group); else state.hidden.delete(group);
        button.setAttribute("aria-pressed", String(!hide));
        show(node, state);
      });
      list.append(button);
    });
    node.after(list);
  };

  const addSlider = (node, content, state) => {
    const slider = content.figure.layout.sliders?.[0];
    if (!slider) return;
    const choose = (at) => {
      const [{ visible }, traces] = slider.steps[at].args;
      const on = new Map(traces.map((trace, i) => [trace, visible[i]]));
      state.inLayer = (i) => on.get(i) ?? true;
    };
    choose(slider.active);
    const label = Object.assign(document.createElement("label"), { className: "slider" });
    const range = Object.assign(document.createElement("input"), { type: "range", min: 0, max: slider.steps.length - 1, step: 1, value: slider.active });
    const shown = document.createElement("output");
    const say = (at) => {
      shown.textContent = slider.steps[at].label;
      range.setAttribute("aria-valuetext", `layer ${slider.steps[at].label}`);
    };
    say(slider.active);
    range.addEventListener("input", () => {
      say(range.valueAsNumber);
      choose(range.valueAsNumber);
      show(node, state);
    });
    label.append("layer", range, shown);
    node.before(label);
  };

  const takeControls = (node, content) => {
    const state = { hidden: new Set(), inLayer: () => true };
    addSlider(node, content, state);
    addLegend(node, content, state);
    const { layout } = content.figure;
    layout.margin.b -= layout.meta.below;
    layout.height -= layout.meta.below;
    content.narrow.height -= layout.meta.below;
    layout.showlegend = false;
    delete layout.sliders;
  };

  const drawn = new Map();
  const draw = (node) => {
    if (drawn.has(node)) return;
    const content = JSON.parse(document.getElementById(`data-${node.dataset.figure}`).textContent);
    drawn.set(node, content);
    takeControls(node, content);
    Plotly.newPlot(node, content.figure.data, layoutOf(content), settings(node.dataset.figure));
  };
  const redraw = () => drawn.forEach((content, node) => Plotly.react(node, node.data, layoutOf(content), settings(node.dataset.figure)));

  const plots = [...document.querySelectorAll(".plot")];
  const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting) { watcher.unobserve(entry.target); draw(entry.target); }
  }), { rootMargin: "800px" });
  plots.forEach((node) => watcher.observe(node));
  addEventListener("beforeprint", () => plots.forEach(draw));
  narrow.addEventListener("change", redraw);
  dark.addEventListener("change", redraw);
})();
