"use strict";
// The last hour as lines, of the cluster or of one edge: a small inline SVG, redrawn every few
// seconds and when its box changes its width.

const Plots = (() => {
  const HEIGHT = 170,
    LEFT = 78,
    BOTTOM = 20,
    TOP = 8,
    REFRESH_MS = 5000,
    HOUR = 3600;

  function svg(tag, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // The smallest step of `1, 2, 5 × 10^n` (or powers of two, for bytes) with at most four lines.
  function stepOf(top, binary) {
    if (binary) return 2 ** Math.ceil(Math.log2(top / 4));
    const power = 10 ** Math.floor(Math.log10(top / 4));
    return Math.max(1, power * [1, 2, 5, 10].find((m) => m * power >= top / 4));
  }

  const clock = (seconds, options) => new Date(seconds * 1000).toLocaleTimeString("en-GB", options);

  // A line with gaps where there is no value.
  function pathOf(times, values, x, y) {
    let path = "",
      open = false;
    times.forEach((t, i) => {
      const value = values[i];
      if (value === null || value === undefined) {
        open = false;
        return;
      }
      path += (open ? "L" : "M") + x(t).toFixed(1) + " " + y(value).toFixed(1);
      open = true;
    });
    return path;
  }

  class Plot {
    // `least` is a value that the axis always includes, so that zero is drawn at the bottom.
    constructor(holder, title, series, { format, least, binary }) {
      Object.assign(this, { title, series, format, least, binary, data: [[]], at: null });
      this.legend = el("p", { class: "plot-legend" });
      this.picture = svg("svg", { role: "img", height: HEIGHT });
      this.box = el("div", { class: "plot" }, el("h3", {}, title), this.picture, this.legend);
      holder.append(this.box);
      this.picture.addEventListener("pointermove", (event) => this.point(event.offsetX));
      this.picture.addEventListener("pointerleave", () => this.point(null));
      this.watch = new ResizeObserver(() => this.draw());
      this.watch.observe(this.box);
    }

    show(data) {
      this.data = data;
      this.draw();
    }
    point(offset) {
      this.at = offset;
      this.draw();
    }
    close() {
      this.watch.disconnect();
    }

    draw() {
      const [times, ...lines] = this.data,
        width = Math.max(240, this.picture.clientWidth || this.box.clientWidth - 18);
      const end = times.length ? times[times.length - 1] : Date.now() / 1000,
        start = Math.min(times[0] ?? end, end - 60, Math.max(end - HOUR, times[0] ?? end - HOUR));
      const top =
        Math.max(this.least, ...lines.flat().filter((v) => v !== null && v !== undefined)) * 1.05;
      const x = (t) => LEFT + ((t - start) / (end - start)) * (width - LEFT - 8);
      const y = (v) => TOP + (1 - v / top) * (HEIGHT - TOP - BOTTOM);
      const parts = [];
      for (let v = 0, step = stepOf(top, this.binary); v <= top; v += step) {
        parts.push(
          svg("line", { x1: LEFT, x2: width - 8, y1: y(v), y2: y(v), class: "plot-grid" }),
          svg("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, this.format(v)),
        );
      }
      const ticks = Math.max(1, Math.min(5, Math.floor((width - LEFT) / 90))),
        short = end - start < 300 ? {} : { hour: "2-digit", minute: "2-digit" };
      for (let i = 0; i <= ticks; i++) {
        const t = start + ((end - start) * i) / ticks;
        parts.push(
          svg(
            "text",
            {
              x: x(t),
              y: HEIGHT - 4,
              "text-anchor": i === 0 ? "start" : i === ticks ? "end" : "middle",
            },
            clock(t, short),
          ),
        );
      }
      lines.forEach((values, i) =>
        parts.push(
          svg("path", {
            d: pathOf(times, values, x, y),
            class: "plot-line",
            stroke: "var(--" + this.series[i].colour + ")",
            "stroke-dasharray": this.series[i].dash || "none",
          }),
        ),
      );
      let index = times.length - 1;
      if (this.at !== null && times.length) {
        const sought = start + ((this.at - LEFT) / (width - LEFT - 8)) * (end - start);
        index = times.reduce(
          (best, t, i) => (Math.abs(t - sought) < Math.abs(times[best] - sought) ? i : best),
          0,
        );
        parts.push(
          svg("line", {
            x1: x(times[index]),
            x2: x(times[index]),
            y1: TOP,
            y2: HEIGHT - BOTTOM,
            class: "plot-grid",
          }),
        );
      }
      this.picture.replaceChildren(...parts);
      const said = (i) => {
        const value = lines[i] && lines[i][index];
        return value === null || value === undefined ? "–" : this.format(value);
      };
      this.legend.replaceChildren(
        el("span", {}, index >= 0 ? clock(times[index]) : "no data yet"),
        ...this.series.map((s, i) =>
          el("span", {}, el("i", { class: "key-" + s.colour }), s.label + " " + said(i)),
        ),
      );
      this.picture.setAttribute("aria-label", this.title + ": " + this.legend.textContent);
    }
  }

  // Both plots, kept up to date from `path` until closed.
  function lastHour(holder, path) {
    const bytes = new Plot(
      holder,
      "Bytes a second",
      [
        { label: "sent", colour: "held" },
        { label: "from origin", colour: "critical", dash: "6 3" },
        { label: "from peers", colour: "medium", dash: "2 3" },
      ],
      { format: Format.rate, least: 4096, binary: true },
    );
    const people = new Plot(
      holder,
      "Viewers and stalls",
      [
        { label: "viewers", colour: "held" },
        { label: "stalls/s", colour: "high", dash: "6 3" },
      ],
      { format: (v) => (v % 1 ? v.toFixed(1) : String(v)), least: 4, binary: false },
    );
    const refresh = () =>
      get(path)
        .then((h) => {
          bytes.show([h.t, h.sent, h.origin, h.peer]);
          people.show([h.t, h.readers, h.stalls]);
        })
        .catch((error) => say(error.message, false));
    refresh();
    const timer = setInterval(refresh, REFRESH_MS);
    return {
      close() {
        clearInterval(timer);
        bytes.close();
        people.close();
      },
    };
  }

  return { lastHour };
})();
