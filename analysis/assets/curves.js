// Loss curves of the runs that are checked in the table and, below them, the differences from the reference.
(() => {
  const form = document.getElementById("curve-controls");
  if (!form) return;
  const FALL = 0.9; // the initial fall: the first nine tenths of a curve's whole fall
  const TOP = 300, BELOW = 210, GAP = 60; // heights in pixels
  const X = {
    step: ["step", (run) => run.step],
    tokens: ["tokens", (run) => run.step.map((s) => run.startTokens + ownTokens(run, s))],
    flops: ["training FLOPs", (run) => run.step.map((s) => run.startFlops + ownTokens(run, s) * run.flopsPerToken)],
    time: ["seconds of training", (run) => run.time],
  };
  const ownTokens = (run, step) => (step - run.startStep) * run.tokensPerStep; // a branch starts with its parent's
  const Y = { val: DATA.measure, train: "training loss, nats per token" };
  const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity); // an argument list has a maximum length
  const greatest = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  function points(run, { x, y }) {
    const xs = X[x][1](run);
    return run.step.map((step, i) => ({ step, x: xs[i], y: run[y][i] })).filter((p) => p.x !== null && p.y !== null);
  }

  // The number of steps to average over: a share of the longest curve, and no less than the distance of its points.
  function windowOf(curves, percent) {
    if (!percent) return 0;
    const spans = curves.filter((pts) => pts.length > 1).map((pts) => [pts.at(-1).step - pts[0].step, pts.length - 1]);
    return Math.round(Math.max(percent / 100 * greatest(spans.map(([span]) => span)), ...spans.map(([span, n]) => span / n), 0));
  }

  // A centered moving average over this many steps.
  function smooth(pts, span) {
    let first = 0, end = 0, sum = 0;
    return pts.map((p) => {
      while (end < pts.length && pts[end].step - p.step <= span / 2) sum += pts[end++].y;
      while (p.step - pts[first].step > span / 2) sum -= pts[first++].y;
      return { ...p, y: sum / (end - first), raw: p.y };
    });
  }

  // One curve per run: its name and its points.
  function runCurves(runs, curves) {
    return runs.map((run, i) => ({ run, name: run.run, pts: curves[i] }));
  }

  // Mean and range over the seeds, at the steps that all of them have. A run that was left out of the comparison, such as
  // one that ended early, is left out here as well, unless there is no other.
  function seedCurves(runs, curves) {
    return [...new Set(runs.map((run) => run.experiment))].map((experiment) => {
      const all = runs.map((run, i) => [run, curves[i]]).filter(([run]) => run.experiment === experiment);
      const compared = all.filter(([run]) => run.compared);
      const seeds = (compared.length ? compared : all).map(([, pts]) => new Map(pts.map((p) => [p.step, p])));
      const steps = [...seeds[0].keys()].filter((step) => seeds.every((seed) => seed.has(step)));
      const pts = steps.map((step) => {
        const at = seeds.map((seed) => seed.get(step)), ys = at.map((p) => p.y);
        return { step, x: mean(at.map((p) => p.x)), y: mean(ys), raw: mean(at.map((p) => p.raw)), low: least(ys), high: greatest(ys) };
      });
      return { run: all[0][0], name: `${experiment} (${seeds.length})`, pts };
    });
  }

  const column = (pts, key) => pts.map((p) => p[key]);

  function line(curve, pts, extra = {}) {
    return {
      type: "scatter", mode: pts.length > 60 ? "lines" : "lines+markers", x: column(pts, "x"), y: column(pts, "y"),
      line: { color: color(curve.color), dash: dash(curve.color), width: 2 }, marker: { size: 5 }, ...extra,
    };
  }

  function band(curve, pts, extra = {}) {
    const edge = { type: "scatter", mode: "lines", x: column(pts, "x"), line: { width: 0 }, hoverinfo: "skip", showlegend: false, ...extra };
    return [{ ...edge, y: column(pts, "low") },
      { ...edge, y: column(pts, "high"), fill: "tonexty", fillcolor: `${color(curve.color)}2b` }];
  }

  function lossTraces({ run, name, pts }, span) {
    const hover = { name: plain(name), text: pts.map((p) => `step ${p.step}`),
      hovertemplate: "%{y:.4f} · %{text} · %{x:.4g}<extra>%{fullData.name}</extra>" };
    const raw = { name: plain(`${name} (raw)`), opacity: 0.25, showlegend: false, hoverinfo: "skip", mode: "lines" };
    return [...(pts.length && "low" in pts[0] ? band(run, pts) : []),
      ...(span ? [line(run, pts.map((p) => ({ ...p, y: p.raw })), raw)] : []), line(run, pts, hover)];
  }

  function differenceTraces(difference) {
    const pts = difference.step.map((step, i) => (
      { x: step, y: difference.mean[i], low: difference.low[i], high: difference.high[i] })).filter((p) => p.y !== null);
    const seeds = `${difference.how}, ${difference.seeds} ${difference.seeds === 1 ? "seed" : "seeds"}`;
    const text = pts.map((p) => (p.low === null ? "one seed" : `${p.low.toFixed(4)} to ${p.high.toFixed(4)}, ${seeds}`));
    const axes = { xaxis: "x2", yaxis: "y2" };
    return [...band(difference, pts.filter((p) => p.low !== null), axes),
      line(difference, pts, { ...axes, text, showlegend: false,
        hovertemplate: `%{y:+.4f} (%{text}) · step %{x}<extra>${plain(difference.experiment)}</extra>` })];
  }

  // The index of the first point after the initial fall. At least half of the points are at or after it.
  function afterFall(pts) {
    const bottom = least(column(pts, "y")), first = pts[0].y;
    return Math.min(pts.findIndex((p) => first - p.y >= FALL * (first - bottom)), Math.floor(pts.length / 2));
  }

  // An axis over the points after the initial fall. A curve that rises above its first value again is cut off there.
  function lossRange(curves, logarithmic) {
    const tails = curves.map(({ pts }) => pts).filter((pts) => pts.length > 2).map((pts) => [pts[0].y, pts.slice(afterFall(pts))]);
    const low = least(tails.map(([, tail]) => least(tail.map((p) => p.low ?? p.y))));
    const high = greatest(tails.map(([first, tail]) => Math.min(first, greatest(tail.map((p) => p.high ?? p.y)))));
    return logarithmic ? padded(Math.log10(low), Math.log10(high)) : padded(low, high);
  }

  // An axis over the differences from this step on.
  function differenceRange(differences, from) {
    const values = differences.flatMap((d) => [d.mean, d.low, d.high].flatMap((ys) => ys.filter((y, i) => y !== null && d.step[i] >= from)));
    return padded(least([0, ...values]), greatest([0, ...values]));
  }

  const padded = (low, high) => (low < high && Number.isFinite(high - low) ? { range: [low - 0.06 * (high - low), high + 0.06 * (high - low)] } : { autorange: true });

  // Add the panel of differences below the losses. Both have the same horizontal axis if that of the losses is in steps.
  function addPanel(layout, inSteps, range) {
    const all = TOP + GAP + BELOW, share = BELOW / all;
    const size = document.getElementById("curves").clientWidth / LETTER - 10;
    layout.height = all + 60;
    layout.yaxis.domain = [(BELOW + GAP) / all, 1];
    layout.xaxis2 = { title: { text: "step" }, type: layout.xaxis.type, anchor: "y2", ...(inSteps ? { matches: "x" } : {}) };
    layout.yaxis2 = { title: { text: `difference, ${DATA.unit}` }, domain: [0, share], anchor: "x2", ...range };
    if (inSteps) layout.xaxis.title.text = "";
    const at = { xref: "x2 domain", x0: 0, x1: 1, yref: "y2", y0: 0, y1: 0 };
    layout.shapes = [{ type: "line", ...at, line: { color: "#808080", dash: "dot", width: 1 } }];
    layout.annotations = [{
      text: wrapped(plain(`${DATA.measure.split(",")[0]} minus ${DATA.reference}`), size, 2), xref: "x2 domain", x: 0, xanchor: "left", yref: "y2 domain", y: 1,
      yanchor: "bottom", align: "left", showarrow: false,
    }];
  }

  window.drawCurves = () => {
    const fields = new FormData(form);
    const choice = { x: fields.get("x"), y: fields.get("y") }, whole = fields.has("whole");
    const runs = DATA.runs.filter((run) => run.drawn).sort((a, b) => a.color - b.color);
    const raw = runs.map((run) => points(run, choice));
    const span = choice.y === "train" ? windowOf(raw, +fields.get("smoothing")) : 0;
    const curves = (fields.has("mean") ? seedCurves : runCurves)(runs, span ? raw.map((pts) => smooth(pts, span)) : raw);
    const shown = new Set(runs.map((run) => run.experiment));
    const differences = DATA.differences.filter((difference) => shown.has(difference.experiment));
    const stated = span ? `mean of ${span} steps` : "as logged";
    document.getElementById("smoothing").hidden = choice.y !== "train";
    document.getElementById("smoothing-value").value = stated;

    const isLog = { x: fields.has("logx") ? "log" : "linear", y: fields.has("logy") ? "log" : "linear" };
    const from = least(curves.filter(({ pts }) => pts.length).map(({ pts }) => pts[afterFall(pts)].step));
    const layout = {
      height: TOP + 60, hovermode: "closest",
      xaxis: { title: { text: X[choice.x][0] }, type: isLog.x },
      yaxis: { title: { text: choice.y === "train" ? `${Y.train}<br>${stated}` : Y.val }, type: isLog.y,
        ...(whole ? { autorange: true } : lossRange(curves, isLog.y === "log")) },
    };
    if (differences.length) addPanel(layout, choice.x === "step", whole ? { autorange: true } : differenceRange(differences, from));
    draw("curves", [...curves.flatMap((curve) => lossTraces(curve, span)), ...differences.flatMap(differenceTraces)], layout);
  };
  form.addEventListener("input", window.drawCurves);
  form.addEventListener("submit", (event) => event.preventDefault());
  window.drawCurves();
})();
