// The static figures, and the heat map of a weight statistic of the selected run.
(() => {
  for (const [id, figure] of Object.entries(DATA.figures)) draw(id, figure.data, figure.layout);
  const form = document.getElementById("weight-controls");
  if (!form) return;
  function drawWeights() {
    const fields = new FormData(form), run = DATA.weights[+fields.get("run")], key = fields.get("statistic");
    const label = form.elements.statistic.selectedOptions[0].textContent;
    draw("weights", [{
      type: "heatmap", z: run.values[key], x: run.steps.map(String), y: run.tensors.map(plain), colorscale: "Viridis",
      colorbar: { title: { text: label, side: "right" }, thickness: 12 }, hoverongaps: false,
      hovertemplate: "%{y}<br>step %{x}<br>%{z:.4g}<extra></extra>",
    }], {
      height: Math.min(1400, 120 + 24 * run.tensors.length), margin: { l: 60, r: 20, t: 10, b: 50 },
      xaxis: { title: { text: "checkpoint at step" }, type: "category" }, yaxis: { autorange: "reversed", type: "category" },
    });
  }
  form.addEventListener("input", drawWeights);
  form.addEventListener("submit", (event) => event.preventDefault());
  drawWeights();
})();
