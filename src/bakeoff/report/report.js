"use strict";
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const clear = "rgba(0,0,0,0)";
  const axis = (own) => ({ zeroline: false, automargin: true, ...own });

  // Colours of text, grid and tooltips are the style sheet's, which knows the theme and paper.
  const styled = (layout) => ({
    ...layout,
    showlegend: false,
    hovermode: "closest",
    paper_bgcolor: clear,
    plot_bgcolor: clear,
    font: { family: getComputedStyle(document.body).fontFamily, size: 12 },
    hoverlabel: { align: "left" },
    margin: { l: 52, r: 12, t: 12, b: 44 },
    xaxis: axis(layout.xaxis),
    yaxis: axis(layout.yaxis),
  });

  const draw = (element, size) => {
    const { spec, axes } = plots[element.dataset.group][element.dataset.figure];
    const chosen = axes[element.parentElement.querySelector("[data-axes]")?.value];
    const off = element.closest("section").querySelectorAll(".legend [aria-pressed=false], .legend [hidden] button");
    const hidden = new Set([...off].map((button) => Number(button.dataset.row)));
    const data = spec.data.map((trace, i) => ({
      ...trace,
      ...(chosen && { x: chosen.x[i], y: chosen.y[i] }),
      visible: !hidden.has(trace.meta),
    }));
    const layout = { ...styled(spec.layout), ...size };
    if (chosen) layout.xaxis.title = { text: chosen.title };
    Plotly.react(element, data, layout, { responsive: true, displayModeBar: false });
  };
  const drawAll = (within, size) => within.querySelectorAll(".plot").forEach((element) => draw(element, size));

  drawAll(document);
  // Paper is narrower than most windows; two figures stand side by side on it.
  addEventListener("beforeprint", () => drawAll(document, { width: 330, height: 250 }));
  addEventListener("afterprint", () => drawAll(document));
  for (const select of document.querySelectorAll("[data-axes]")) {
    select.addEventListener("change", () => draw(select.closest("figure").querySelector(".plot")));
  }
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      drawAll(button.closest("section"));
    });
  }

  // Whether a text holds every word of a search, in any case and order.
  const holds = (text, search) =>
    search.toLowerCase().split(/\s+/).every((word) => text.toLowerCase().includes(word));
  const tell = (output, shown, all, what) => {
    output.textContent = shown === all ? `${all} ${what}` : `${shown} of ${all} ${what}`;
  };

  for (const search of document.querySelectorAll("[data-search=rows]")) {
    const section = search.closest("section");
    search.addEventListener("input", () => {
      const rows = [...section.querySelector(".sortable").tBodies[0].rows];
      const shown = rows.filter((row) => holds(row.dataset.label, search.value)).map((row) => row.dataset.row);
      for (const element of section.querySelectorAll("[data-row]")) {
        (element.closest(".legend li") ?? element).hidden = !shown.includes(element.dataset.row);
      }
      tell(search.closest(".controls").querySelector("output"), shown.length, rows.length, "rows");
      drawAll(section);
    });
  }

  for (const box of document.querySelectorAll(".disagreements")) {
    const [text, truth, wrong] = ["text", "truth", "wrong"].map((name) => box.querySelector(`[data-filter=${name}]`));
    const items = [...box.querySelectorAll("article")];
    box.addEventListener("input", () => {
      for (const item of items) {
        item.hidden =
          !holds(item.querySelector("blockquote").textContent, text.value) ||
          (truth.value && item.dataset.truth !== truth.value) ||
          (wrong.value && !item.dataset.wrong.split(" ").includes(wrong.value));
      }
      tell(box.querySelector("output"), items.filter((item) => !item.hidden).length, items.length, "texts");
    });
  }

  const sort = (heading) => {
    const table = heading.closest("table");
    const body = table.tBodies[0];
    const descending = heading.getAttribute("aria-sort") === "ascending";
    const number = (row) => Number(row.cells[heading.cellIndex].dataset.sort ?? -Infinity);
    const order = (a, b) =>
      heading.dataset.kind === "text"
        ? a.dataset.label.localeCompare(b.dataset.label)
        : number(a) - number(b) || 0; // the difference of two infinities is no number
    body.append(...[...body.rows].sort((a, b) => (descending ? order(b, a) : order(a, b))));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  for (const button of document.querySelectorAll(".sortable th button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
})();
