// Loss curves of the runs that are checked in the table. Smoothed curves are drawn on top of the raw ones.
(() => {
  const form = document.getElementById("curve-controls");
  if (!form) return;
  const X = {
    step: ["step", (run) => run.step],
    tokens: ["tokens", (run) => run.step.map((s) => run.startTokens + ownTokens(run, s))],
    flops: ["training FLOPs", (run) => run.step.map((s) => run.startFlops + ownTokens(run, s) * run.flopsPerToken)],
    time: ["seconds of training", (run) => run.time],
  };
  const ownTokens = (run, step) => (step - run.startStep) * run.tokensPerStep; // a branch starts with its parent's
  const Y = { val: DATA.measure, train: "training loss, nats per token" };

  function points(run, x, y) {
    const xs = X[x][1](run);
    return run.step.map((step, i) => ({ step, x: xs[i], y: run[y][i] })).filter((p) => p.x !== null && p.y !== null);
  }

  function smooth(values, weight) { // exponential moving average with bias correction, as in Adam
    let sum = 0, norm = 0;
    return values.map((v) => { sum = weight * sum + (1 - weight) * v; norm = weight * norm + (1 - weight); return sum / norm; });
  }

  function line(run, name, pts, extra = {}) {
    return {
      type: "scatter", mode: pts.length > 60 ? "lines" : "lines+markers", name: plain(name), x: pts.map((p) => p.x),
      y: pts.map((p) => p.y), line: { color: color(run.color), dash: dash(run.color), width: 2 }, marker: { size: 5 },
      text: pts.map((p) => `step ${p.step}`), legendgroup: run.experiment,
      hovertemplate: "%{y:.4f} · %{text} · %{x:.4g}<extra>%{fullData.name}</extra>", ...extra,
    };
  }

  function runTraces(run, choice) {
    const pts = points(run, choice.x, choice.y);
    if (!choice.weight) return [line(run, run.run, pts)];
    const ys = smooth(pts.map((p) => p.y), choice.weight);
    return [line(run, `${run.run} (raw)`, pts, { opacity: 0.3, showlegend: false, hoverinfo: "skip", hovertemplate: null }),
      line(run, run.run, pts.map((p, i) => ({ ...p, y: ys[i] })))];
  }

  // Mean and range over the seeds, at the steps that all of them have. A run that was left out of the comparison, such as
  // one that ended early, is left out here as well, unless there is no other.
  function seedTraces(selected, choice) {
    const compared = selected.filter((run) => run.compared);
    const runs = compared.length ? compared : selected;
    const all = runs.map((run) => new Map(points(run, choice.x, choice.y).map((p) => [p.step, p])));
    const steps = [...all[0].keys()].filter((step) => all.every((seed) => seed.has(step)));
    const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
    const at = steps.map((step) => all.map((seed) => seed.get(step)));
    const pts = at.map((seeds, i) => ({ step: steps[i], x: mean(seeds.map((p) => p.x)), y: mean(seeds.map((p) => p.y)) }));
    const ys = choice.weight ? smooth(pts.map((p) => p.y), choice.weight) : null;
    const quiet = { type: "scatter", mode: "lines", x: pts.map((p) => p.x), line: { width: 0 }, hoverinfo: "skip",
      showlegend: false, legendgroup: runs[0].experiment };
    const edge = (pick) => at.map((seeds) => pick(...seeds.map((p) => p.y)));
    const band = [{ ...quiet, y: edge(Math.min) },
      { ...quiet, y: edge(Math.max), fill: "tonexty", fillcolor: `${color(runs[0].color)}33` }];
    const name = `${runs[0].experiment} (${runs.length})`;
    if (!ys) return [...band, line(runs[0], name, pts)];
    return [...band, line(runs[0], name, pts, { opacity: 0.3, showlegend: false, hoverinfo: "skip", hovertemplate: null }),
      line(runs[0], name, pts.map((p, i) => ({ ...p, y: ys[i] })))];
  }

  window.drawCurves = () => {
    const fields = new FormData(form);
    const choice = { x: fields.get("x"), y: fields.get("y"), weight: +fields.get("smoothing") };
    const runs = DATA.runs.filter((run) => run.drawn);
    const groups = Map.groupBy ? [...Map.groupBy(runs, (run) => run.experiment).values()]
      : [...new Set(runs.map((run) => run.experiment))].map((name) => runs.filter((run) => run.experiment === name));
    const traces = fields.has("mean") ? groups.flatMap((group) => seedTraces(group, choice)) : runs.flatMap((run) => runTraces(run, choice));
    document.getElementById("smoothing-value").value = choice.weight ? choice.weight.toFixed(2) : "off";
    draw("curves", traces, {
      height: 440, hovermode: "closest", legend: { orientation: "h", y: -0.22 }, showlegend: traces.length > 0,
      xaxis: { title: { text: X[choice.x][0] }, type: fields.has("logx") ? "log" : "linear" },
      yaxis: { title: { text: Y[choice.y] }, type: fields.has("logy") ? "log" : "linear" },
    });
  };
  form.addEventListener("input", window.drawCurves);
  form.addEventListener("submit", (event) => event.preventDefault());
  window.drawCurves();
})();
