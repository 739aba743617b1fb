// Roles of colours, on light and on dark ground; text of users; small helpers.

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
