// Curves against the step: averaged over seeds and smoothed here.

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
        points.text.push(`${setting.name}, ${part.seeds[i]}: ${name} at ${short(part.at[i])}`);
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
