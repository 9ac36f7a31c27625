// The page's data, the palette from Python, and `draw`, which adapts figures to the color scheme and to the page's width.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const { colors: COLORS, dashes: DASHES } = DATA.palette;
const STROKES = { solid: "none", dash: "6 3", dot: "2 2", dashdot: "6 2 2 2" };
const LETTER = 7; // the width of a letter in a figure, in pixels
const drawn = new Map();

const color = (n) => COLORS[n % COLORS.length];
const dash = (n) => DASHES[Math.floor(n / COLORS.length) % DASHES.length];
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); // plotly interprets some HTML
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isNarrow = matchMedia("(max-width: 44rem)");

// Break a text into at most `most` lines of `size` letters, after punctuation where that is possible. A text that is too
// long loses its middle.
function wrap(text, size, most) {
  const letters = [...text];
  for (let kept = letters.length; ; kept -= 1) {
    const half = Math.floor(kept / 2);
    const lines = breakLines(kept === letters.length ? text : `${letters.slice(0, half).join("")}…${letters.slice(-half).join("")}`, size);
    if (lines.length <= most || half < 2) return lines;
    kept = Math.min(kept, size * most);
  }
}

function breakLines(text, size) {
  const words = text.split(/(?<=[\s_=/:-]|\.(?=\D))/u).flatMap((word) => word.match(new RegExp(`.{1,${size}}`, "gsu")) ?? []);
  const lines = [""];
  for (const word of words) {
    if ([...`${lines.at(-1)}${word}`.trimEnd()].length > size) lines.push("");
    lines[lines.length - 1] += word;
  }
  return lines.map((line) => line.trimEnd());
}

const unescape = (text) => text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
const wrapped = (text, size, most) => wrap(unescape(text), Math.max(Math.floor(size), 8), most).map(plain).join("<br>");

function themedAxis(axis, size, labels) {
  const themed = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true, ...axis };
  themed.title = { text: axis.title?.text ?? "", font: { size: 13, color: css("--soft") }, standoff: 8 };
  const ticks = { tickmode: "array", tickvals: labels, ticktext: labels.map((label) => wrapped(label, size / LETTER, 2)) };
  return labels.length ? { ...themed, ...ticks } : themed;
}

function draw(id, traces, layout) {
  drawn.set(id, [traces, layout]);
  const element = document.getElementById(id), width = element.clientWidth;
  element.style.height = `${layout.height}px`; // plotly drops the layout's height when it resizes
  const names = [...new Set(traces.flatMap((trace) => trace.y ?? []).filter((y) => typeof y === "string"))];
  const axes = { xaxis: {}, yaxis: {}, ...Object.fromEntries(Object.entries(layout).filter(([key]) => /^[xy]axis/.test(key))) };
  for (const [key, axis] of Object.entries(axes)) axes[key] = themedAxis(axis, width * 0.34, key[0] === "y" ? names : []);
  const themed = {
    margin: { l: 60, r: 12, t: 10, b: 50 }, ...layout, ...axes, showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--ink"), family: "system-ui, sans-serif", size: isNarrow.matches ? 11 : 12 },
    hoverlabel: { bgcolor: css("--box"), bordercolor: css("--line"), font: { color: css("--ink") } },
  };
  drawLegend(element, traces.filter((trace) => trace.name && trace.showlegend !== false));
  return Plotly.react(id, traces, themed, { displayModeBar: false, responsive: true });
}

// A legend of HTML, because plotly cuts off names that are wider than the figure.
function drawLegend(element, traces) {
  let list = document.getElementById(`${element.id}-legend`);
  if (!list) {
    list = Object.assign(document.createElement("ul"), { id: `${element.id}-legend`, className: "legend" });
    element.before(list);
  }
  list.replaceChildren(...traces.map((trace) => {
    const item = document.createElement("li");
    item.innerHTML = trace.mode === "markers" ? `<svg width="10" height="10"><circle cx="5" cy="5" r="4.5" fill="${trace.marker.color}"/></svg>`
      : `<svg width="22" height="8"><path d="M0 4H22" stroke-width="3" stroke="${trace.line.color}" stroke-dasharray="${STROKES[trace.line.dash]}"/></svg>`;
    item.append(unescape(trace.name));
    return item;
  }));
}

const redrawAll = () => { for (const [id, [traces, layout]] of [...drawn]) draw(id, traces, layout); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
isNarrow.addEventListener("change", redrawAll);

document.querySelectorAll("[data-color]").forEach((swatch) => { swatch.style.background = color(+swatch.dataset.color); });
