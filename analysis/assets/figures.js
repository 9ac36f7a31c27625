// The static figures, and the heat map of a weight statistic of the selected run.
(() => {
  for (const [id, figure] of Object.entries(DATA.figures)) draw(id, figure.data, figure.layout);
  const form = document.getElementById("weight-controls");
  if (!form) return;
  function drawWeights() {
    const fields = new FormData(form), run = DATA.weights[+fields.get("run")], key = fields.get("statistic");
    const label = form.elements.statistic.selectedOptions[0].textContent;
    const bar = isNarrow.matches ? { orientation: "h", y: 1, yanchor: "bottom", title: { text: label } }
      : { title: { text: label, side: "right" } };
    draw("weights", [{
      type: "heatmap", z: run.values[key], x: run.steps.map(String), y: run.tensors.map(plain), colorscale: "Viridis",
      colorbar: { thickness: 12, ...bar }, hoverongaps: false,
      hovertemplate: "%{y}<br>step %{x}<br>%{z:.4g}<extra></extra>",
    }], {
      height: Math.min(1400, 120 + 30 * run.tensors.length), margin: { l: 60, r: 12, t: 10, b: 50 },
      xaxis: { title: { text: "checkpoint at step" }, type: "category" }, yaxis: { autorange: "reversed", type: "category" },
    });
  }
  form.addEventListener("input", drawWeights);
  form.addEventListener("submit", (event) => event.preventDefault());
  isNarrow.addEventListener("change", drawWeights);
  drawWeights();
})();
