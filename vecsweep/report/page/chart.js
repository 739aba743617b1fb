// A chart: its picture, its legend, its controls, and the cursor of the keyboard.

function baseLayout() {
  const axis = {
    gridcolor: color("@grid"), linecolor: color("@muted"), zerolinecolor: color("@grid"), ticks: "outside",
    tickcolor: color("@muted"), automargin: true, exponentformat: "power",
  };
  return {
    paper_bgcolor: color("@paper"), plot_bgcolor: color("@paper"), showlegend: false, hovermode: "closest",
    font: { color: color("@ink"), size: 13, family: "system-ui, sans-serif" },
    margin: { l: 60, r: 16, t: 30, b: 48 }, dragmode: isTouched.matches ? false : "zoom",
    hoverlabel: { namelength: -1 }, xaxis: { ...axis }, yaxis: { ...axis },
    yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
  };
}

function rangeOf(view, type) {
  if (!view) return {};
  const [bottom, top] = view;
  if (type === "log") {
    if (!(bottom > 0)) return { autorange: true };
    const [low, high] = [Math.log10(bottom), Math.log10(top)];
    const margin = (high - low || 1) * 0.06;
    const ticks = high - low < 3 ? { dtick: "D2" } : {}; // at 1, 2 and 5; all digits are too many
    return { range: [low - margin, high + 1.5 * margin], autorange: false, ...ticks };
  }
  const height = top - bottom || Math.abs(bottom) || 1;
  return { range: [bottom - 0.06 * height, top + 0.09 * height], autorange: false };
}

// Numbers as Python packs them, or as they are.
function unpack(packed) {
  if (!packed.bdata) return packed;
  const bytes = Uint8Array.from(atob(packed.bdata), (character) => character.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

function describePoint(trace, index) {
  const x = trace.x ? unpack(trace.x)[index] : trace.x0 + index * trace.dx, y = unpack(trace.y)[index];
  const text = trace.text ? `${trace.text[index]}: ` : "";
  return `${text || (trace.name ? `${trace.name}: ` : "")}x ${short(x)}, y ${short(y)}`;
}

const groupOf = (trace) => trace.legendgroup ?? trace.name ?? "";
const short = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value));

class Chart {
  constructor(place, data) {
    this.data = data;
    this.hidden = new Set();
    this.axes = {};
    this.controls = make("div", { class: "controls" });
    this.plot = make("div", {
      class: "plot", tabindex: "0", role: "img",
      "aria-label": `${place.dataset.alt} Arrow keys go along a line, up and down to another.`,
    });
    this.readout = make("div", { class: "readout", "aria-live": "polite" });
    this.legend = make("div", { class: "legend", role: "group", "aria-label": "Legend: press to hide or show" });
    place.append(this.controls, this.plot, this.readout, this.legend);
    this.plot.addEventListener("keydown", (event) => this.walk(event));
    this.cursor = null;
    this.addControls();
  }

  choose(label, names, act) {
    const select = make("select", { "aria-label": label });
    names.forEach((name, i) => select.append(make("option", { value: i }, name)));
    select.addEventListener("change", () => act(Number(select.value)));
    this.controls.append(make("label", {}, `${label} `, select));
    return select;
  }

  addAxes(axes) {
    this.boxes = {};
    for (const axis of axes) {
      const box = make("input", { type: "checkbox", "data-axis": axis });
      box.addEventListener("change", () => { this.axes[axis] = box.checked ? "log" : "linear"; this.draw(); });
      this.boxes[axis] = box;
      this.controls.append(make("label", {}, box, `log ${axis}`));
    }
  }

  draw() {
    const figure = this.figure();
    const base = baseLayout();
    const layout = { ...base, ...paint(figure.layout) };
    for (const axis of ["xaxis", "yaxis"]) {
      const own = { ...base[axis], ...paint(figure.layout[axis] ?? {}) };
      own.type = this.axes[axis[0]] ?? own.type;
      if (axis === "yaxis" && figure.view) Object.assign(own, rangeOf(figure.view, own.type));
      if (this.boxes?.[axis[0]]) this.boxes[axis[0]].checked = own.type === "log";
      layout[axis] = own;
    }
    layout.height = figure.layout.height ?? this.plot.clientHeight;
    this.plot.style.height = `${layout.height}px`;
    this.traces = figure.traces;
    const traces = figure.traces.map((own) => ({
      hovertemplate: "%{x:.4~g}, %{y:.4~g}<extra>%{fullData.name}</extra>", name: "", ...paint(own),
      visible: !this.hidden.has(groupOf(own)),
    }));
    this.fillLegend();
    Plotly.react(this.plot, traces, layout, {
      displaylogo: false, responsive: true, displayModeBar: !isTouched.matches,
      modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]], // none that shares
    });
    this.isDrawn = true;
  }

  fillLegend() {
    const entries = new Map();
    for (const own of this.traces) {
      if (own.name && !entries.has(groupOf(own))) entries.set(groupOf(own), own);
    }
    const key = JSON.stringify([root.dataset.theme, [...entries].map(([group, own]) => [group, own.name])]);
    if (key !== this.legendKey) {
      this.legendKey = key;
      const buttons = [...entries].map(([group, own]) => this.entry(group, own, [...entries.keys()]));
      this.legend.replaceChildren(...(entries.size > 1 ? buttons : []));
      if (entries.size > 3) {
        const all = () => { this.hidden.clear(); this.draw(); };
        const none = () => { entries.forEach((_, group) => this.hidden.add(group)); this.draw(); };
        this.legend.prepend(
          make("button", { type: "button", onclick: all }, "All"),
          make("button", { type: "button", onclick: none }, "None"));
      }
    }
    for (const button of this.legend.querySelectorAll("[data-group]")) {
      button.setAttribute("aria-pressed", String(!this.hidden.has(button.dataset.group)));
    }
  }

  entry(group, own, groups) {
    const button = make("button", {
      type: "button", "data-group": group, title: "Click to hide or show; with Shift, show it alone",
    }, swatch(own), own.name);
    button.addEventListener("click", (event) => {
      if (event.shiftKey) {
        groups.forEach((name) => this.hidden.add(name));
        this.hidden.delete(group);
      } else if (!this.hidden.delete(group)) this.hidden.add(group);
      this.draw();
    });
    return button;
  }

  // The cursor of the keyboard: a point of a visible trace, shown as if the mouse were over it.
  walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const turn = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step && !turn) return;
    event.preventDefault();
    const shown = this.traces.map((own, i) => [own, i]).filter(
      ([own]) => own.hoverinfo !== "skip" && own.type !== "heatmap" && !this.hidden.has(groupOf(own)));
    if (!shown.length) return;
    const at = this.cursor ?? { row: 0, index: -1 };
    at.row = (at.row + (turn ?? 0) + shown.length) % shown.length;
    const [trace, number] = shown[at.row];
    const ys = unpack(trace.y);
    const jump = Math.max(1, Math.round(ys.length / 200));
    at.index = Math.min(ys.length - 1, Math.max(0, at.index + (step ?? 0) * jump));
    if (turn && at.index < 0) at.index = 0;
    this.cursor = at;
    this.readout.textContent = describePoint(trace, at.index);
    if (Number.isFinite(ys[at.index])) Plotly.Fx.hover(this.plot, [{ curveNumber: number, pointNumber: at.index }],
      [trace.yaxis === "y2" ? "xy2" : "xy"]);
  }
}

function swatch(own) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("width", "26");
  svg.setAttribute("height", "12");
  svg.setAttribute("aria-hidden", "true");
  const add = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    svg.append(element);
  };
  const mode = own.mode ?? "lines";
  const tint = (role) => color(typeof role === "string" ? role : "@ink");
  if (own.fill) add("rect", { width: 26, height: 12, fill: tint(own.fillcolor) });
  else if (mode.includes("lines")) {
    const dash = DASHES[own.line?.dash ?? "solid"] ?? own.line.dash.replace(/px/g, "").replace(/,/g, " ");
    add("line", { x1: 0, x2: 26, y1: 6, y2: 6, stroke: tint(own.line?.color), "stroke-width": 2.5, "stroke-dasharray": dash });
  } else if (own.marker?.symbol?.startsWith("x")) {
    add("path", { d: "M8 1 L18 11 M18 1 L8 11", stroke: tint(own.marker.line?.color ?? own.marker.color), "stroke-width": 2 });
  } else if (SHAPES[own.marker?.symbol]) add("path", { d: SHAPES[own.marker.symbol], fill: tint(own.marker.color) });
  else add("circle", { cx: 13, cy: 6, r: 5, fill: tint(own.marker?.color) });
  return svg;
}
