"use strict";
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // The page's own colours on a figure's layout, whose axes and titles are left as they are.
  const themed = (layout) => {
    const axis = (own) => ({
      gridcolor: color("--line"), linecolor: color("--line"), zeroline: false, automargin: true, ...own,
    });
    return {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("--quiet"), family: getComputedStyle(document.body).fontFamily, size: 12 },
      hoverlabel: { bgcolor: color("--tint"), bordercolor: color("--line"), font: { color: color("--ink") } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      margin: { l: 56, r: 16, t: 40, b: 48 },
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
    };
  };

  const draw = (element) => {
    const { spec, axes } = plots[element.dataset.group][element.dataset.figure];
    const select = element.parentElement.querySelector("[data-axes]");
    const chosen = select && axes[select.value];
    const data = chosen
      ? spec.data.map((trace, i) => ({ ...trace, x: chosen.x[i], y: chosen.y[i] }))
      : spec.data;
    const layout = themed(spec.layout);
    if (chosen) layout.xaxis.title = { text: chosen.title };
    Plotly.react(element, data, layout, { responsive: true, displayModeBar: false });
  };

  const elements = [...document.querySelectorAll(".plot")];
  const drawAll = () => elements.forEach(draw);
  drawAll();
  dark.addEventListener("change", drawAll);
  for (const select of document.querySelectorAll("[data-axes]")) {
    select.addEventListener("change", () => draw(select.closest("figure").querySelector(".plot")));
  }

  const sort = (heading) => {
    const table = heading.closest("table");
    const body = table.tBodies[0];
    const descending = heading.getAttribute("aria-sort") === "ascending";
    const words = heading.dataset.kind === "text";
    const key = (row) => {
      const cell = row.cells[heading.cellIndex];
      return words ? cell.textContent : Number(cell.dataset.sort ?? -Infinity);
    };
    const order = (a, b) => (words ? key(a).localeCompare(key(b)) : key(a) - key(b) || 0);
    const rows = [...body.rows].sort((a, b) => (descending ? order(b, a) : order(a, b)));
    body.append(...rows);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  for (const button of document.querySelectorAll(".sortable th button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
})();
