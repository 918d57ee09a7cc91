"use strict";
// The chunk map of one entry: a strip per edge, a column of pixels for as many chunks as fall on
// it. Drawn from runs, so that 51,200 chunks and 200 edges cost a few thousand rectangles a frame
// at most.

const ChunkMap = (() => {
  const STRIP = 14,
    GAP = 4,
    LABEL = 90,
    AXIS = 18;
  const LEVELS = ["critical", "high", "medium", "low"];

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue("--" + name).trim();
    return Object.fromEntries(
      ["held", "absent", "critical", "high", "medium", "low", "ink", "soft"].map((n) => [
        n,
        get(n),
      ]),
    );
  }

  // Fraction of each pixel column that the runs cover.
  function coverage(runs, chunks, width) {
    const columns = new Float32Array(width);
    const scale = width / chunks;
    for (const [first, end] of runs) {
      const from = first * scale,
        to = end * scale;
      const a = Math.floor(from),
        b = Math.min(width - 1, Math.floor(to));
      if (a === b) {
        columns[a] += to - from;
        continue;
      }
      columns[a] += a + 1 - from;
      for (let x = a + 1; x < b; x++) columns[x] = 1;
      columns[b] += to - b;
    }
    return columns;
  }

  function draw(canvas, entry, seeks = []) {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(200, canvas.clientWidth),
      rows = Math.max(1, entry.edges.length);
    const height = rows * (STRIP + GAP) + AXIS;
    if (
      canvas.width !== Math.round(width * ratio) ||
      canvas.height !== Math.round(height * ratio)
    ) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.height = height + "px";
    }
    const ink = colours(),
      g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, height);
    g.font = "12px system-ui, sans-serif";
    g.textBaseline = "middle";
    const plot = Math.floor(width - LABEL),
      scale = plot / Math.max(1, entry.chunk_count);
    entry.edges.forEach((edge, row) => {
      const y = row * (STRIP + GAP);
      g.fillStyle = ink.soft;
      g.fillText(edge.edge.slice(0, 13), 0, y + STRIP / 2);
      g.fillStyle = ink.absent;
      g.fillRect(LABEL, y, plot, STRIP);
      const columns = coverage(edge.runs, Math.max(1, entry.chunk_count), plot);
      g.fillStyle = ink.held;
      // Columns with equal coverage are one rectangle: as many as there are runs, not as there are
      // pixels.
      for (let x = 0, end; x < plot; x = end) {
        for (end = x + 1; end < plot && columns[end] === columns[x]; end++);
        if (columns[x] <= 0) continue;
        g.globalAlpha = 0.35 + 0.65 * Math.min(1, columns[x]);
        g.fillRect(LABEL + x, y, end - x, STRIP);
      }
      g.globalAlpha = 1;
      for (const flight of entry.flights) {
        if (flight.edge !== edge.edge) continue;
        g.fillStyle = ink[LEVELS[flight.level - 1]] || ink.low;
        g.fillRect(LABEL + flight.first * scale, y, Math.max(3, flight.count * scale), STRIP);
      }
      for (const viewer of entry.viewers) {
        if (viewer.edge !== edge.edge) continue;
        const x = LABEL + (viewer.position / Math.max(1, entry.size)) * plot;
        g.fillStyle = ink.ink;
        g.beginPath();
        g.moveTo(x, y + STRIP + 3);
        g.lineTo(x - 4, y - 2);
        g.lineTo(x + 4, y - 2);
        g.fill();
      }
      // An arrow from start to target: the shape carries the meaning, not the colour.
      for (const seek of seeks) {
        if (seek.edge !== edge.edge) continue;
        const [a, b] = [seek.from, seek.to].map(
          (at) => LABEL + (at / Math.max(1, entry.size)) * plot,
        );
        const middle = y + STRIP / 2,
          back = b < a ? 6 : -6;
        g.strokeStyle = ink.ink;
        g.lineWidth = 2;
        g.setLineDash([4, 3]);
        g.beginPath();
        g.moveTo(a, middle);
        g.lineTo(b, middle);
        g.stroke();
        g.setLineDash([]);
        g.beginPath();
        g.moveTo(b + back, middle - 4);
        g.lineTo(b, middle);
        g.lineTo(b + back, middle + 4);
        g.stroke();
      }
    });
    g.fillStyle = ink.soft;
    const y = rows * (STRIP + GAP) + AXIS / 2;
    // Five do not fit side by side on a phone.
    (plot < 400 ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]).forEach((part) => {
      g.textAlign = part === 0 ? "left" : part === 1 ? "right" : "center";
      g.fillText(Format.bytes(entry.size * part), LABEL + plot * part, y);
    });
    g.textAlign = "left";
  }

  // The chunk and edge under a pointer, or null.
  function at(canvas, entry, event) {
    const box = canvas.getBoundingClientRect();
    const x = event.clientX - box.left - LABEL,
      row = Math.floor((event.clientY - box.top) / (STRIP + GAP));
    if (x < 0 || row < 0 || row >= entry.edges.length) return null;
    const chunk = Math.floor((x / (box.width - LABEL)) * entry.chunk_count);
    return {
      chunk: Math.min(Math.max(0, chunk), entry.chunk_count - 1),
      edge: entry.edges[row].edge,
    };
  }

  return { draw, at, coverage };
})();

const Format = {
  bytes(n) {
    if (!n) return "0 B";
    const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, n)) / 10));
    const value = n / 2 ** (10 * power);
    return (value >= 100 || power === 0 ? value.toFixed(0) : value.toFixed(1)) + " " + units[power];
  },
  rate(n) {
    return Format.bytes(n) + "/s";
  },
  count(n) {
    return (n || 0).toLocaleString("en");
  },
  percent(part, whole) {
    return whole > 0 ? ((100 * part) / whole).toFixed(part === whole ? 0 : 1) + " %" : "–";
  },
  duration(seconds) {
    if (seconds === null || seconds === undefined) return "–";
    if (seconds < 60) return Math.round(seconds) + " s";
    if (seconds < 3600) return Math.floor(seconds / 60) + " min " + Math.round(seconds % 60) + " s";
    return Math.floor(seconds / 3600) + " h " + Math.floor((seconds % 3600) / 60) + " min";
  },
  ago(ms) {
    return ms ? Format.duration(Math.max(0, (Date.now() - ms) / 1000)) + " ago" : "never";
  },
};
