// Pictures that are there as they are, one or several to choose from.

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
