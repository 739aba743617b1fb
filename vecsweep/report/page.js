"use strict";
(() => {
  // Colours that the colour-blind tell apart (Okabe and Ito), darkened or brightened where the ground asks for contrast.
  const PALETTES = {
    light: {
      "@paper": "#ffffff", "@ink": "#1b1f24", "@muted": "#59626d", "@grid": "#e3e6ea",
      series: ["#0072b2", "#d55e00", "#009070", "#b8608f", "#b37700", "#3a8fc4", "#1b1f24"], scale: [0, 0.88],
    },
    dark: {
      "@paper": "#14171b", "@ink": "#e8eaed", "@muted": "#a4adb8", "@grid": "#2c323a",
      series: ["#5cb3ea", "#ff8a45", "#2fcf9f", "#e79cc6", "#e6a520", "#a9d8f5", "#e8eaed"], scale: [0.25, 1],
    },
  };
  const VIRIDIS = [
    [68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 144, 141], [39, 173, 129], [93, 200, 99],
    [170, 220, 50], [253, 231, 37],
  ];
  const DASHES = { solid: "", dash: "6 3", dot: "2 2", dashdot: "6 2 2 2", longdash: "9 3", longdashdot: "9 2 2 2" };
  const SHAPES = {
    square: "M8 1h10v10h-10z", diamond: "M13 0l6 6-6 6-6-6z", hexagon: "M10 1h6l4 5-4 5h-6l-4-5z",
    "triangle-up": "M13 0l6 11h-12z", "triangle-down": "M13 12l6-11h-12z", cross: "M11 0h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    star: "M13 0l1.5 4.3h4.5l-3.6 2.8 1.4 4.6-3.8-2.8-3.8 2.8 1.4-4.6-3.6-2.8h4.5z",
  };
  const root = document.documentElement;
  const content = JSON.parse(document.getElementById("content").textContent);
  const charts = [];
  const isTouched = matchMedia("(pointer: coarse)");

  // Text of users: Plotly reads some HTML and entities, so that both are written out.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  // ---------------------------------------------------------------- colours

  function viridis(share) {
    const [low, high] = PALETTES[root.dataset.theme].scale;
    const place = (low + share * (high - low)) * (VIRIDIS.length - 1);
    const i = Math.min(VIRIDIS.length - 2, Math.floor(place));
    return VIRIDIS[i].map((own, k) => Math.round(own + (place - i) * (VIRIDIS[i + 1][k] - own)));
  }

  function color(role) {
    const [name, opacity] = role.split("/");
    const palette = PALETTES[root.dataset.theme];
    let rgb;
    if (name.startsWith("@scale:")) rgb = viridis(Number(name.slice(7)));
    else {
      const hex = palette[name] ?? palette.series[Number(name.slice(1))];
      rgb = [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
    }
    return `rgba(${rgb.join(",")},${opacity ?? 1})`;
  }

  const ROLE = /^@(\d|paper|ink|muted|grid|scale:[\d.]+)(\/[\d.]+)?$/;
  const WORDS = new Set(["text", "ticktext", "name", "customdata"]); // keys under which users' text stands

  function paint(value, key) {
    if (typeof value === "string") {
      if (WORDS.has(key)) return plain(value);
      return ROLE.test(value) ? color(value) : value;
    }
    if (Array.isArray(value)) return value.map((own) => paint(own, key));
    if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([name, own]) => [name, paint(own, name)]));
  }

  // ---------------------------------------------------------------- one chart

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

  // ---------------------------------------------------------------- pictures that are there as they are

  class FigureChart extends Chart {
    addControls() {
      this.number = 0;
      const { figures } = this.data;
      if (figures.length > 1) this.choose("Show", figures.map((own) => own.name), (i) => {
        this.number = i;
        this.axes = {};
        this.draw();
      });
      const isNumeric = figures.every((own) => own.traces.every((trace) => trace.type !== "heatmap"));
      if (isNumeric && !figures[0].layout.height) this.addAxes(["x", "y"]);
    }

    figure() { return this.data.figures[this.number]; }
  }

  // ---------------------------------------------------------------- curves: averaged over seeds and smoothed here

  function unpack(packed) {
    if (!packed.bdata) return packed;
    const bytes = Uint8Array.from(atob(packed.bdata), (character) => character.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  }

  // The mean of the past, debiased, as `vecsweep.suggest.smooth` has it; `weight` is that of the past at each value.
  function smooth(values, weight) {
    if (!weight) return values;
    const out = new Float32Array(values.length);
    let average = 0, total = 0;
    for (let i = 0; i < values.length; i++) {
      if (!Number.isFinite(values[i])) { out[i] = NaN; continue; }
      average = weight * average + (1 - weight) * values[i];
      total = weight * total + (1 - weight);
      out[i] = average / total;
    }
    return out;
  }

  class CurveChart extends Chart {
    addControls() {
      this.part = 0;
      this.metric = 0;
      const { parts } = this.data;
      if (parts.length > 1) this.choose("Part", parts.map((own) => own.name), (i) => {
        this.part = i;
        this.hidden.clear();
        this.fillMetrics(0);
      });
      this.metrics = this.choose("Metric", [], (i) => this.fillMetrics(i));
      this.addAxes(["x", "y"]);
      this.slider = make("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": "Smoothing" });
      this.slider.addEventListener("input", () => {
        this.tellSmoothing();
        cancelAnimationFrame(this.pending);
        this.pending = requestAnimationFrame(() => this.draw());
      });
      this.told = make("output", {});
      this.controls.append(make("label", {}, "smoothing ", this.slider), this.told);
      this.fillMetrics(0, true);
    }

    fillMetrics(number, isFirst) {
      this.metric = number;
      this.axes = {};
      const { metrics } = this.data.parts[this.part];
      this.metrics.replaceChildren(...metrics.map((own, i) => make("option", { value: i }, own.name)));
      this.metrics.value = number;
      const { smoothed } = metrics[number];
      this.slider.value = smoothed ? this.positionOf(smoothed) : 0;
      this.tellSmoothing();
      if (!isFirst) this.draw();
    }

    // How many rows an average is over: 0, or from two (or a stretch) to a fifth of the run, evenly in its logarithm.
    bounds() {
      const own = this.data.parts[this.part].metrics[this.metric];
      own.x ??= unpack(own.rows);
      const least = Math.max(2, own.stretch);
      return [least, Math.max(2 * least, (own.x.length * own.stretch) / 5)];
    }

    positionOf(rows) {
      const [least, most] = this.bounds();
      return rows <= least ? 0 : Math.round((100 * Math.log(rows / least)) / Math.log(most / least));
    }

    rows() {
      const [least, most] = this.bounds();
      return Number(this.slider.value) === 0 ? 0 : least * (most / least) ** (Number(this.slider.value) / 100);
    }

    tellSmoothing() {
      const { per } = this.data.parts[this.part].metrics[this.metric];
      const rows = this.rows();
      this.told.textContent = rows ? `over about ${Math.round(rows * per)} steps` : "as recorded";
    }

    // Each setting's mean, lowest and highest over its seeds; a seed that was stopped counts on with its last value.
    bands(part, own, rows) {
      const count = own.x.length;
      const weight = rows ? (1 - 1 / rows) ** own.stretch : 0;
      return part.settings.map((setting, s) => {
        if (!rows && own.line) {
          const cut = (values, size) => values?.subarray(s * size, (s + 1) * size);
          return { line: cut(own.line, 2 * count), low: cut(own.low, count), high: cut(own.high, count) };
        }
        const seeds = setting.members.map((i) => {
          const values = smooth(own.own.subarray(i * count, (i + 1) * count), weight);
          if (part.ended[i] !== 2) return values;
          const held = Float32Array.from(values);
          for (let k = 1; k < count; k++) if (!Number.isFinite(held[k])) held[k] = held[k - 1];
          return held;
        });
        const line = new Float32Array(count), low = new Float32Array(count), high = new Float32Array(count);
        const isOver = (k) => setting.members.every((i) => !Number.isFinite(own.own[i * count + k]));
        for (let k = 0; k < count; k++) {
          if (isOver(k)) { line[k] = low[k] = high[k] = NaN; continue; }
          let sum = 0, least = Infinity, most = -Infinity;
          for (const values of seeds) {
            sum += values[k];
            if (values[k] < least) least = values[k];
            if (values[k] > most) most = values[k];
          }
          line[k] = sum / seeds.length;
          low[k] = least === Infinity ? NaN : least;
          high[k] = most === -Infinity ? NaN : most;
        }
        return { line, low, high };
      });
    }

    figure() {
      const part = this.data.parts[this.part], own = part.metrics[this.metric];
      for (const name of ["own", "line", "low", "high"]) if (own[name]) own[name] = unpack(own[name]);
      own.x ??= unpack(own.rows);
      const bands = this.bands(part, own, this.rows());
      const { x } = own;
      const half = (x[1] - x[0]) / 2 || 0;
      const pairs = own.line ? Float32Array.from({ length: 2 * x.length }, (_, k) => x[k >> 1] + (k & 1) * half) : x;
      const traces = [];
      part.settings.forEach((setting, s) => {
        const shared = { legendgroup: String(s), type: "scatter", mode: "lines" };
        const { line, low, high } = bands[s];
        if (setting.members.length > 1) traces.push({
          ...shared, ...polygons(x, low, high), fill: "toself", fillcolor: `${setting.color}/0.15`, hoverinfo: "skip",
          line: { width: 0 },
        });
        const mode = x.length <= 30 ? "lines+markers" : "lines";
        traces.push({
          ...shared, name: setting.name, x: line.length > x.length ? pairs : x, y: line, mode,
          line: { color: setting.color, dash: setting.dash, width: part.settings.length > 12 ? 1.3 : 1.9 },
        });
      });
      traces.push(...this.ends(part, own, bands));
      const shapes = part.phases.map((at) => ({
        type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", line: { color: "@muted", dash: "dash", width: 1 },
      }));
      return {
        traces, view: own.view,
        layout: {
          xaxis: { title: { text: part.x }, type: "linear" }, shapes,
          yaxis: { title: { text: own.name }, type: own.log ? "log" : "linear" },
        },
      };
    }

    // Where members ended, at the last value that their setting's line had, or at the edge of the view.
    ends(part, own, bands) {
      const kinds = { 1: ["diverged", "x"], 2: ["stopped", "square"] };
      return Object.entries(kinds).flatMap(([kind, [name, symbol]]) => {
        const points = { x: [], y: [], text: [], colors: [] };
        part.settings.forEach((setting, s) => setting.members.forEach((i) => {
          if (part.ended[i] !== Number(kind) || this.hidden.has(String(s))) return;
          const row = own.own.subarray(i * own.x.length, (i + 1) * own.x.length);
          const last = row.findLast((value) => Number.isFinite(value)) ?? own.view[1];
          points.x.push(part.at[i]);
          points.y.push(Math.min(Math.max(last, own.view[0]), own.view[1]));
          points.text.push(`${setting.name}, seed ${part.seeds[i]}: ${name} at ${short(part.at[i])}`);
          points.colors.push(setting.color);
        }));
        const marker = { symbol, size: 8, color: points.colors };
        return points.x.length ? [{
          x: points.x, y: points.y, text: points.text, mode: "markers", marker, name, hovertemplate: "%{text}<extra></extra>",
        }] : [];
      });
    }
  }

  function polygons(x, low, high) {
    const xs = [], ys = [];
    for (let begin = 0; begin < x.length; begin++) {
      if (!Number.isFinite(low[begin]) || !Number.isFinite(high[begin])) continue;
      let end = begin;
      while (end < x.length && Number.isFinite(low[end]) && Number.isFinite(high[end])) end++;
      for (let k = begin; k < end; k++) { xs.push(x[k]); ys.push(low[k]); }
      for (let k = end - 1; k >= begin; k--) { xs.push(x[k]); ys.push(high[k]); }
      xs.push(NaN);
      ys.push(NaN);
      begin = end;
    }
    return { x: xs, y: ys };
  }

  // ---------------------------------------------------------------- tables

  const valueOf = (cell) => cell.dataset.value ?? cell.textContent;

  function sortBy(table, column) {
    const head = table.tHead.rows[0].cells[column];
    const isAscending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map((row) => [row, valueOf(row.cells[column])]);
    const sign = isAscending ? 1 : -1;
    rows.sort(([, a], [, b]) => {
      if (a === "" || b === "") return (a === "") - (b === ""); // what is missing comes last, either way
      const [x, y] = [Number(a), Number(b)];
      return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
    });
    table.tBodies[0].append(...rows.map(([row]) => row));
  }

  const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);

  function csvOf(table) {
    const head = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].map(valueOf));
    return [head, ...rows].map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
  }

  for (const table of document.querySelectorAll("table")) {
    [...table.tHead.rows[0].cells].forEach((cell, i) => {
      cell.querySelector("button").addEventListener("click", () => sortBy(table, i));
    });
    const button = table.closest("section").querySelector(".csv");
    button.addEventListener("click", () => {
      const address = URL.createObjectURL(new Blob([csvOf(table)], { type: "text/csv" }));
      make("a", { href: address, download: button.dataset.file }).click();
      setTimeout(() => URL.revokeObjectURL(address), 1000);
    });
  }

  // ---------------------------------------------------------------- the page

  function setTheme(name) {
    root.dataset.theme = name;
    document.getElementById("theme").textContent = name === "dark" ? "Light" : "Dark";
    charts.filter((chart) => chart.isDrawn).forEach((chart) => chart.draw());
  }

  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(prefersDark.matches ? "dark" : "light");
  prefersDark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));

  // A chart is drawn when it comes near the view, so that long pages open at once.
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((own) => own.isIntersecting)) {
      watcher.unobserve(entry.target);
      const chart = charts.find((own) => own.place === entry.target);
      setTimeout(() => chart.draw()); // one after another, with the page at work in between
    }
  }, { rootMargin: "300px" });
  for (const place of document.querySelectorAll("[data-chart]")) {
    const data = content[place.dataset.chart];
    const chart = new (data.kind === "curves" ? CurveChart : FigureChart)(place, data);
    chart.place = place;
    charts.push(chart);
    watcher.observe(place);
  }
  addEventListener("beforeprint", () => charts.filter((own) => !own.isDrawn).forEach((own) => own.draw()));
  root.dataset.ready = "true";
})();
