// Everything that is drawn goes through `draw`, which follows the reader's light or dark setting.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const PALETTE = ["#3b82c4", "#e08214", "#21a179", "#d6478f", "#8a78d8", "#c2a011", "#4cb5d8", "#d1495b"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const drawn = new Map();

const colour = (n) => PALETTE[n % PALETTE.length];
const dash = (n) => DASHES[Math.floor(n / PALETTE.length) % DASHES.length];
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); // plotly reads some HTML
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw(id, traces, layout) {
  drawn.set(id, [traces, layout]);
  const axis = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true };
  const themed = {
    margin: { l: 60, r: 20, t: 10, b: 50 }, ...layout,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--ink"), family: "system-ui, sans-serif", size: 13 },
    hoverlabel: { bgcolor: css("--box"), bordercolor: css("--line"), font: { color: css("--ink") } },
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
  };
  return Plotly.react(id, traces, themed, { displayModeBar: false, responsive: true });
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [id, [traces, layout]] of [...drawn]) draw(id, traces, layout);
});

document.querySelectorAll("[data-colour]").forEach((mark) => { mark.style.background = colour(+mark.dataset.colour); });
