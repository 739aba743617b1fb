// The page: light or dark, and charts as they come near the view.

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
