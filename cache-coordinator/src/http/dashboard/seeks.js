"use strict";
// Seeks of an entry's viewers, as they happen. A player that seeks over HTTP drops its request and
// sends another: if a reader leaves and another one starts on the same edge, elsewhere in the
// object, one viewer went from here to there. A player that names its session need not be guessed.

const Seeks = (() => {
  const SHOWN_MS = 5000; // on the map
  const APART_MS = 2500; // between the two, as edges tell of their readers once a second
  const KEPT = 20; // in the list

  function watch() {
    let before = null,
      gone = [],
      seeks = [];
    return {
      // Adds the next state; true if a viewer sought.
      see(entry, now) {
        const key = (v) => v.edge + " " + (v.viewer || v.reader);
        const far = (a, b) => Math.abs(a.position - b.position) > entry.chunk_size;
        const here = new Map(entry.viewers.map((v) => [key(v), v]));
        const found = [];
        if (before) {
          gone = gone.filter((g) => now - g.at < APART_MS);
          for (const [name, v] of before)
            if (!here.has(name)) gone.push({ edge: v.edge, position: v.position, at: now });
          for (const [name, v] of here) {
            const was = before.get(name);
            if (was) {
              if (was.reader !== v.reader && far(was, v))
                found.push({ edge: v.edge, from: was.position, to: v.position, at: now });
              continue;
            }
            const from = gone.findIndex((g) => g.edge === v.edge && far(g, v));
            if (from >= 0)
              found.push({
                edge: v.edge,
                from: gone.splice(from, 1)[0].position,
                to: v.position,
                at: now,
              });
          }
        }
        before = here;
        seeks = [...found, ...seeks].slice(0, KEPT);
        return found.length > 0;
      },
      all: () => seeks,
      fresh: (now) => seeks.filter((s) => now - s.at < SHOWN_MS),
    };
  }

  return { watch, SHOWN_MS };
})();
