// The page's data, the palette from Python, and `draw`, which adapts figures to the light or dark color scheme.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const { colors: COLORS, dashes: DASHES } = DATA.palette;
const drawn = new Map();

const color = (n) => COLORS[n % COLORS.length];
const dash = (n) => DASHES[Math.floor(n / COLORS.length) % DASHES.length];
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); // plotly interprets some HTML
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw(id, traces, layout) {
  drawn.set(id, [traces, layout]);
  document.getElementById(id).style.height = `${layout.height}px`; // plotly drops the layout's height when it resizes
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

document.querySelectorAll("[data-color]").forEach((swatch) => { swatch.style.background = color(+swatch.dataset.color); });
