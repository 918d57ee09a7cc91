"use strict";
// The savings of the last day, by source: numbers, and a small inline SVG for each.

const Worth = (() => {
  const WIDTH = 180,
    HEIGHT = 28,
    REFRESH_MS = 30000;

  function svg(tag, attributes) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  // One bar for each step, in the time they cover; `null`: nothing was sent.
  function spark(label, times, step, values, top) {
    const picture = svg("svg", {
      role: "img",
      "aria-label": label,
      class: "spark",
      viewBox: "0 0 " + WIDTH + " " + HEIGHT,
      width: WIDTH,
      height: HEIGHT,
    });
    const end = times[times.length - 1] + step,
      span = Math.max(end - times[0], 12 * step),
      width = (step / span) * WIDTH;
    picture.append(
      svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5, class: "plot-grid" }),
    );
    times.forEach((t, i) => {
      const value = values[i];
      if (value === null || value <= 0 || top <= 0) return;
      const height = Math.max(1, (value / top) * (HEIGHT - 2));
      picture.append(
        svg("rect", {
          x: (((t - end + span) / span) * WIDTH).toFixed(1),
          y: (HEIGHT - 1 - height).toFixed(1),
          width: Math.max(1, width - 1).toFixed(1),
          height: height.toFixed(1),
          class: "spark-bar",
        }),
      );
    });
    return picture;
  }

  function day(history) {
    const { t, step_seconds: step } = history;
    const share = (s) => s.sent.map((sent, i) => (sent ? s.hit[i] / sent : null)),
      saved = (s) => s.sent.map((sent, i) => sent - s.origin[i]);
    return table(
      "Worth of each source",
      [
        { title: "Source", cell: (s) => s.name },
        {
          title: "From the cache",
          number: true,
          cell: (s) => Format.percent(s.total.hit, s.total.sent),
        },
        {
          title: "Hit share over time",
          cell: (s) => spark("hit share of " + s.name + " in the last day", t, step, share(s), 1),
        },
        {
          title: "Saved at origins",
          number: true,
          cell: (s) => Format.bytes(Math.max(0, s.total.sent - s.total.origin)),
        },
        {
          title: "Saved over time",
          cell: (s) =>
            spark(
              "bytes that the origins of " + s.name + " did not send in the last day",
              t,
              step,
              saved(s),
              Math.max(...saved(s)),
            ),
        },
      ],
      history.sources,
      "Nothing was sent since this coordinator started.",
    );
  }

  // Kept up to date until closed.
  function lastDay(holder) {
    const refresh = () =>
      get("/api/v1/history/sources")
        .then((history) => holder.replaceChildren(day(history)))
        .catch((error) => say(error.message, false));
    refresh();
    const timer = setInterval(refresh, REFRESH_MS);
    return { close: () => clearInterval(timer) };
  }

  return { lastDay };
})();
