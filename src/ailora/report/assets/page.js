"use strict";
(() => {
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const said = document.getElementById("said");
  const probe = document.getElementById("probe");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const make = (tag, text, parent) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  // What Plotly's texts say: no markup is in them but line breaks and bold names.
  const plain = (text) =>
    String(text).replace(/<br>/g, ", ").replace(/<\/?b>/g, "")
      .replace(/&#123;/g, "{").replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");

  // Colours: those of the style sheet, as they are now.
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const palette = () => {
    const names = ["ink", "soft", "line", "grid", "card", "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"];
    return Object.fromEntries(names.map((name) => [name, colour(name)]));
  };
  const painted = (trace, colours) => {
    const made = { ...trace };
    if (trace.type === "heatmap") {
      made.colorbar = { ...trace.colorbar, tickfont: { color: colours.soft, size: 11 },
        title: { ...trace.colorbar.title, font: { color: colours.soft, size: 12 } } };
      return made;
    }
    const own = colours[`s${trace.meta.style}`];
    if (trace.meta.band) return { ...made, fillcolor: own };
    if (trace.line) made.line = { ...trace.line, color: own };
    made.marker = { ...trace.marker, color: own };
    for (const error of ["error_x", "error_y"]) {
      if (trace[error]) made[error] = { ...trace[error], color: own, width: 4 };
    }
    if (trace.marker.pattern) made.marker.pattern = { ...trace.marker.pattern, fgcolor: colours.card };
    return made;
  };
  const laid = (layout, colours) => {
    const axis = (own) => ({
      gridcolor: colours.grid, linecolor: colours.line, zerolinecolor: colours.soft, tickcolor: colours.line,
      tickfont: { color: colours.soft, size: 12 }, fixedrange: false, zerolinewidth: 1,
      ...own, title: { ...own.title, font: { size: 12.5, color: colours.soft }, standoff: 10 },
    });
    return {
      ...layout, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis), autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colours.ink },
      margin: { l: 48, r: 14, t: 12, b: 44, ...layout.margin }, bargap: 0.25, dragmode: "zoom",
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
      hoverlabel: { bgcolor: colours.card, bordercolor: colours.line, align: "left", namelength: -1,
        font: { color: colours.ink, size: 13, family: getComputedStyle(document.body).fontFamily } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.soft, activecolor: colours.ink },
    };
  };

  // Charts: drawn when they come near, all of them before printing.
  const figures = [...document.querySelectorAll(".chart")];
  const plot = (figure) => figure.querySelector(".plot");
  const settings = (figure) => ({
    responsive: true, displaylogo: false, typesetMath: false, scrollZoom: false,
    modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
    toImageButtonOptions: { format: "svg", filename: figure.dataset.name },
  });
  const render = (figure, draw) => {
    const { data, layout } = specs[figure.id];
    const colours = palette();
    return draw(plot(figure), data.map((one) => painted(one, colours)), laid(layout, colours), settings(figure));
  };
  const drawn = new Map();
  const draw = (figure) => {
    if (!drawn.has(figure)) {
      const done = render(figure, Plotly.newPlot).then(() => {
        figure.dataset.drawn = "";
        performance.mark("figure");
      });
      drawn.set(figure, done);
    }
    return drawn.get(figure);
  };
  const drawAll = () => Promise.all(figures.map(draw));
  const recolour = () => Promise.all([...drawn.keys()].map((figure) => render(figure, Plotly.react)));
  // One after the other: the first is to be seen while the next is drawn.
  const queue = [];
  const work = async () => {
    while (queue.length) {
      await draw(queue[0]);
      await new Promise((done) => setTimeout(done));
      queue.shift();
    }
  };
  const near = new IntersectionObserver((entries) => {
    const idle = !queue.length;
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      queue.push(target);
    }
    if (idle) work();
  }, { rootMargin: "500px" });
  figures.forEach((figure) => near.observe(figure));
  // The first one is drawn in any case: soon there is something to see, or to print.
  if (figures.length) {
    near.unobserve(figures[0]);
    queue.push(figures[0]);
    work();
  }
  window.ailoraReport = { drawAll };

  // Points by keyboard: left and right along a series, up and down between series.
  const isNumber = (value) => typeof value === "number";
  const points = (spec) => {
    const [first] = spec.data;
    if (first && first.type === "heatmap") {
      return first.z.map((row, i) => row.map((z, j) => ({
        where: { xval: j, yval: i }, label: plain(first.customdata[i][j].join(", ")), value: String(z),
        known: isNumber(z),
      })).filter((one) => one.known));
    }
    return spec.data.map((trace, curveNumber) => trace.meta.band ? [] : trace.y.map((y, pointNumber) => {
      const [category, below] = trace.customdata[pointNumber];
      const value = trace.orientation === "h" || spec.layout.yaxis.ticktext ? trace.x[pointNumber] : y;
      const place = category || trace.x[pointNumber];
      return {
        where: [{ curveNumber, pointNumber }], label: plain(`${trace.name}, ${place}`),
        value: plain(`${value}${below}`), known: isNumber(value),
      };
    }).filter((one) => one.known)).filter((series) => series.length);
  };
  const STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  for (const figure of figures) {
    let at = null;
    plot(figure).addEventListener("keydown", async (event) => {
      if (event.key === "Escape") return Plotly.Fx.unhover(plot(figure));
      const step = STEPS[event.key];
      if (!step) return undefined;
      event.preventDefault();
      await draw(figure);
      const all = points(specs[figure.id]);
      if (!all.length) return undefined;
      const between = (value, length) => Math.min(Math.max(value, 0), length - 1);
      const row = at ? between(at[0] + step[0], all.length) : 0;
      const place = at ? between(at[1] + step[1], all[row].length) : 0;
      at = [row, place];
      const { where, label, value } = all[row][place];
      Plotly.Fx.hover(plot(figure), where);
      said.textContent = `${label}: ${value}`;
      return undefined;
    });
    // The same numbers as a table, made when somebody asks for it.
    const numbers = figure.querySelector(".numbers");
    numbers.addEventListener("toggle", () => {
      if (!numbers.open || numbers.querySelector("table")) return;
      const box = make("div", undefined, numbers);
      box.className = "scroll";
      box.tabIndex = 0;
      const body = make("tbody", undefined, make("table", undefined, box));
      for (const { label, value } of points(specs[figure.id]).flat().slice(0, 1000)) {
        const row = make("tr", undefined, body);
        make("td", label, row);
        make("td", value, row);
      }
    });
  }

  // Light and dark: as the system says until somebody chooses.
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const told = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    told();
    recolour();
  });
  dark.addEventListener("change", () => {
    told();
    recolour();
  });
  told();
  let before;
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    recolour();
    drawAll();
  });
  addEventListener("afterprint", () => {
    if (before === undefined) delete root.dataset.theme;
    else root.dataset.theme = before;
    recolour();
  });

  // Tables: sorted by a click on a head; long ones a page at a time.
  const UNITS = { KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, min: 60, h: 3600 };
  const number = (text) => {
    const found = /^\[?([-+]?[0-9.]+(?:e[-+]?[0-9]+)?) ?([A-Za-z]*)/i.exec(text.replace(/,/g, ""));
    return found ? Number(found[1]) * (UNITS[found[2]] || 1) : NaN;
  };
  const compare = (numeric) => (a, b) => {
    if (!numeric) return a.localeCompare(b, "en", { numeric: true });
    const [x, y] = [number(a), number(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return x - y;
  };
  const missing = (text) => text === "" || text === "-";
  const sort = (sheet, place, way) => {
    const head = sheet.querySelectorAll("th")[place];
    const order = compare(head.classList.contains("n"));
    const keyed = sheet.rows.map((row) => [row.cells[place].textContent.trim(), row]);
    keyed.sort(([a], [b]) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      // What is no number stands at the end, whichever way.
      const none = head.classList.contains("n") && (Number.isNaN(number(a)) || Number.isNaN(number(b)));
      return none ? order(a, b) : way * order(a, b);
    });
    sheet.rows = keyed.map(([, row]) => row);
    sheet.querySelector("tbody").append(...sheet.rows);
  };
  const PAGE = 50;
  const paged = (sheet) => {
    const pager = make("div");
    pager.className = "pager";
    sheet.classList.add("paged");
    sheet.prepend(pager);
    const filter = make("input", undefined, pager);
    filter.type = "search";
    filter.placeholder = "Filter rows";
    filter.setAttribute("aria-label", `Filter rows of ${sheet.querySelector("caption").textContent}`);
    const at = make("span", undefined, pager);
    at.className = "at";
    at.setAttribute("role", "status");
    const [back, on] = ["Previous", "Next"].map((text) => make("button", text, pager));
    let page = 0;
    const show = () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = sheet.rows.filter((row) => {
        const text = words.length ? row.textContent.toLowerCase() : "";
        return words.every((word) => text.includes(word));
      });
      page = Math.min(page, Math.max(0, Math.ceil(found.length / PAGE) - 1));
      const now = new Set(found.slice(page * PAGE, (page + 1) * PAGE));
      sheet.rows.forEach((row) => { row.hidden = !now.has(row); });
      const first = found.length ? page * PAGE + 1 : 0;
      at.textContent = `${first} to ${page * PAGE + now.size} of ${found.length.toLocaleString("en")}`;
      back.disabled = page === 0;
      on.disabled = (page + 1) * PAGE >= found.length;
    };
    filter.addEventListener("input", () => { page = 0; show(); });
    back.addEventListener("click", () => { page -= 1; show(); });
    on.addEventListener("click", () => { page += 1; show(); });
    sheet.show = () => { page = 0; show(); };
    show();
  };
  for (const sheet of document.querySelectorAll(".sheet")) {
    sheet.rows = [...sheet.querySelectorAll("tbody tr")];
    if (sheet.rows.length > PAGE) paged(sheet);
    const heads = [...sheet.querySelectorAll("th")];
    heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(sheet, place, up ? 1 : -1);
      if (sheet.show) sheet.show();
    }));
  }

  // Contents: folded on a phone; the section in sight is marked.
  const contents = document.getElementById("contents");
  if (matchMedia("(max-width: 58rem)").matches) contents.open = false;
  const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.getAttribute("href").slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(target.getAttribute("aria-labelledby"))?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  document.querySelectorAll("section").forEach((section) => seen.observe(section));
})();
