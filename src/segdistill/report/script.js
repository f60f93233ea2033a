"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const root = document.documentElement, button = document.getElementById("theme");
const system = window.matchMedia("(prefers-color-scheme: dark)");
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
const SHADES = {
  light: {text: "#1d2129", grid: "#e6e8ed", line: "#c3c8d1", page: "#ffffff", low: "#f6f7f9", high: "#2563b8"},
  dark: {text: "#e4e7ec", grid: "#2a303a", line: "#4a5260", page: "#14171c", low: "#1c2027", high: "#3d7cd3"},
};

// Height of the legend, computed here because plotly finds it in a second pass, which printing does not wait for.
function legendHeight(figure, widthPx) {
  const names = figure.data.filter(trace => trace.type === "scatter" && trace.showlegend !== false)
    .map(trace => trace.name);
  const lengthPx = names.reduce((sum, name) => sum + 50 + 7 * name.length, 0);
  if (figure.layout.showlegend === false) return 20;
  return names.length ? 20 + 22 * Math.ceil(lengthPx / Math.max(widthPx - 76, 100)) : 90;
}

function dressed(figure, shades, widthPx) {
  const result = structuredClone(figure.layout);
  Object.assign(result, {
    autosize: true, margin: {l: 62, r: 14, t: legendHeight(figure, widthPx), b: 50},
    paper_bgcolor: shades.page, plot_bgcolor: shades.page,
    font: {family: FONT, size: 12.5, color: shades.text},
    legend: {orientation: "h", x: 0, yref: "container", y: 1, yanchor: "top", font: {size: 12}},
    hoverlabel: {font: {family: FONT, size: 12.5}},
  });
  for (const name of Object.keys(result).filter(key => /^[xy]axis/.test(key))) {
    Object.assign(result[name], {gridcolor: shades.grid, linecolor: shades.line, zeroline: false, automargin: true});
  }
  return result;
}

// Colour a trace for the theme. A rim in the page's colour separates markers that overlap.
function shaded(trace, shades) {
  if (trace.type === "heatmap") {
    const chosen = Number(document.querySelector(".choice input:checked")?.value ?? 0);
    return {...trace, colorscale: [[0, shades.low], [1, shades.high]],
            visible: figures.confusion.data.indexOf(trace) === chosen};
  }
  return trace.marker?.symbol ? {...trace, marker: {...trace.marker, line: {width: 1.2, color: shades.page}}} : trace;
}

// A4 across, less the margins that style.css gives it: charts are drawn before the page is laid out on paper.
const PAPER_PX = 273 / 25.4 * 96;

function draw(shades, mostPx = Infinity) {
  for (const [name, figure] of Object.entries(figures)) {
    const place = document.getElementById(name);
    if (!figure.data.length) {
      place.style.height = "auto";
      place.textContent = "Nothing was recorded to draw here.";
      continue;
    }
    const widthPx = Math.min(place.clientWidth, mostPx);
    const layout = dressed(figure, shades, widthPx);
    if (widthPx === mostPx) layout.width = widthPx;
    Plotly.react(place, figure.data.map(trace => shaded(trace, shades)), layout,
                 {displayModeBar: false, responsive: true});
  }
}

const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
function inTheme() {
  draw(isDark() ? SHADES.dark : SHADES.light);
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Show this page in ${isDark() ? "light" : "dark"} colours`);
}
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  inTheme();
});
document.querySelectorAll(".choice input").forEach(input => input.addEventListener("change", inTheme));
system.addEventListener("change", inTheme);
inTheme();

// On paper: light, and with everything unfolded.
let folded = [];
window.addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach(part => { part.open = true; });
  draw(SHADES.light, PAPER_PX);
});
window.addEventListener("afterprint", () => {
  folded.forEach(part => { part.open = false; });
  inTheme();
});

function sortBy(heading) {
  const table = heading.closest("table"), column = heading.cellIndex;
  const number = heading.classList.contains("number");
  // The first click sorts numbers from the largest, names from the start of the alphabet.
  const first = number ? "descending" : "ascending", second = number ? "ascending" : "descending";
  const order = heading.getAttribute("aria-sort") === first ? second : first;
  table.querySelectorAll("[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1, body = table.tBodies[0];
  const key = row => row.cells[column].dataset.value ?? "";
  const compare = (a, b) => {
    if ((key(a) === "") !== (key(b) === "")) return key(a) === "" ? 1 : -1;  // unknown values stay at the end
    return sign * (number ? key(a) - key(b) : key(a).localeCompare(key(b)));
  };
  body.append(...[...body.rows].sort(compare));
}
document.querySelectorAll(".sortable th button").forEach(
  heading => heading.addEventListener("click", () => sortBy(heading.parentElement)));
