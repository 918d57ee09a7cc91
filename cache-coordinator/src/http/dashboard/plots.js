"use strict";
// The last hour as lines (uPlot): of the cluster, or of one edge.

const Plots = (() => {
  const HEIGHT = 180, REFRESH_MS = 5000, HOUR = 3600;
  // Steps of an axis of bytes, so that it says 4 MiB and not 3.8 MiB.
  const POWERS = Array.from({ length: 52 }, (_, i) => 2 ** i);

  const width = (box) => Math.max(260, box.clientWidth - 18);
  const clock = (u, ticks, axis, space, step) => ticks.map((t) => new Date(t * 1000).toLocaleTimeString("en-GB", step < 60 ? {} : { hour: "2-digit", minute: "2-digit" }));

  // `least`: what the axis reaches at least, so that nothing at all is drawn as nothing.
  function make(holder, title, series, format, least, steps) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue("--" + name).trim();
    const box = el("div", { class: "plot" }, el("h3", {}, title));
    holder.append(box);
    const drawn = { stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 } };
    const options = {
      width: width(box), height: HEIGHT, cursor: { y: false },
      // Nothing measured yet, or once: the last hour, and not some years to come.
      scales: { x: { range: (u, min, max) => (max > min && max - min < 86400 ? [min, max] : [Date.now() / 1000 - HOUR, Date.now() / 1000]) }, y: { range: (u, min, max) => [0, Math.max(max, least) * 1.1] } },
      axes: [{ ...drawn, space: 64, values: clock }, { ...drawn, size: 84, incrs: steps, values: (u, ticks) => ticks.map(format) }],
      series: [{ value: (u, t) => (t ? new Date(t * 1000).toLocaleTimeString("en-GB") : "–") },
        ...series.map((s) => ({ label: s.label, stroke: colour(s.colour), fill: s.filled ? colour(s.colour) + "26" : undefined, width: 2, dash: s.dash, points: { show: false }, value: (u, v) => (v === null || v === undefined ? "–" : format(v)) }))],
    };
    return new uPlot(options, [[], ...series.map(() => [])], box);
  }

  function show(plot, data) {
    plot.setData(data);
    // Nobody points at a moment: the legend tells the newest.
    if (plot.cursor.left < 0 && data[0].length) plot.setLegend({ idx: data[0].length - 1 });
  }

  // Both plots, kept up to date from `path` until closed.
  function lastHour(holder, path) {
    const bytes = make(holder, "Bytes a second", [{ label: "sent", colour: "held", filled: true }, { label: "from origin", colour: "critical", dash: [6, 3] }, { label: "from peers", colour: "medium", dash: [2, 3] }], Format.rate, 4096, POWERS);
    const people = make(holder, "Viewers and stalls", [{ label: "viewers", colour: "held", filled: true }, { label: "stalls/s", colour: "high", dash: [6, 3] }], (v) => (v % 1 ? v.toFixed(1) : String(v)), 4, [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000]);
    const refresh = () => get(path).then((h) => {
      show(bytes, [h.t, h.sent, h.origin, h.peer]);
      show(people, [h.t, h.readers, h.stalls]);
    }).catch((error) => say(error.message, false));
    refresh();
    const timer = setInterval(refresh, REFRESH_MS);
    const resize = () => [bytes, people].forEach((p) => p.setSize({ width: width(p.root.parentNode), height: HEIGHT }));
    window.addEventListener("resize", resize);
    return { close() { clearInterval(timer); window.removeEventListener("resize", resize); bytes.destroy(); people.destroy(); } };
  }

  return { lastHour };
})();
