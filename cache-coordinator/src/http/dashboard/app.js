"use strict";
// One page: a route in the hash, a view per route, live through server-sent events. Text from the
// server is only ever set as text, never as markup.

const main = document.getElementById("main");
const live = document.getElementById("live");
let overview = null;
let view = null;

// --- small tools ---

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat())
    if (child !== null && child !== undefined) node.append(child);
  return node;
}

async function get(path) {
  return (await Session.ask(path, { headers: { accept: "application/json" } })).json();
}

// A custom header: a form on another site can not send it, so no other site can act here.
async function act(path, body) {
  await Session.ask(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-requested-with": "chunkcache" },
    body: JSON.stringify(body || {}),
  });
}

function table(caption, columns, rows, empty) {
  if (!rows.length) return el("p", { class: "soft" }, empty);
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          columns.map((c) =>
            el("th", { scope: "col", class: c.number ? "number" : null }, c.title),
          ),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map((row) =>
          el(
            "tr",
            {},
            columns.map((c) =>
              el("td", { class: c.number ? "number" : c.wide ? "wide" : null }, c.cell(row)),
            ),
          ),
        ),
      ),
    ),
  );
}

function cards(items) {
  return el(
    "ul",
    { class: "cards" },
    items.map(([value, label]) => el("li", {}, el("b", {}, value), el("span", {}, label))),
  );
}

// A click is lost if its button is redrawn between press and release: a pressed one stays.
let pressed = null;
document.addEventListener("pointerdown", (event) => {
  pressed = event.target;
});
for (const end of ["pointerup", "pointercancel", "blur"])
  window.addEventListener(end, () =>
    setTimeout(() => {
      pressed = null;
    }, 0),
  );

// Keeps the focus while a part of the page is redrawn, and redraws only what changed.
function replace(holder, ...children) {
  if (pressed && holder.contains(pressed)) return;
  const fresh = holder.cloneNode(false);
  fresh.append(...children);
  if (fresh.isEqualNode(holder)) return;
  children = [...fresh.childNodes];
  const active = document.activeElement,
    key = holder.contains(active) ? active.getAttribute("data-key") : null;
  const scrolled = [...holder.querySelectorAll(".scroll")].map((n) => n.scrollLeft);
  holder.replaceChildren(...children);
  [...holder.querySelectorAll(".scroll")].forEach((n, i) => {
    n.scrollLeft = scrolled[i] || 0;
  });
  if (key) {
    const again = holder.querySelector('[data-key="' + CSS.escape(key) + '"]');
    if (again) again.focus();
  }
}

function button(label, key, action) {
  return el(
    "button",
    {
      type: "button",
      "data-key": key,
      onclick: async ({ target }) => {
        // Not `disabled`: that takes the focus away, and keyboard users would begin again at the
        // top.
        if (target.getAttribute("aria-disabled")) return;
        target.setAttribute("aria-disabled", "true");
        try {
          await action();
          say("done: " + label, true);
        } catch (error) {
          say(label + ": " + error.message, false);
        }
        target.removeAttribute("aria-disabled");
      },
    },
    label,
  );
}

let answered = 0;
function say(text, good) {
  answered = Date.now();
  tell(text, good);
}
function tell(text, good) {
  if (live.textContent !== text) live.textContent = text;
  live.className = "live " + (good ? "on" : "off");
}
const SAID_FOR_MS = 4000; // how long an answer to a button stands

const state = (text) => el("span", { class: "state-" + text }, text);
const entryLink = (e) =>
  el("a", { href: "#/entry/" + e.id, "data-key": "e" + e.id }, e.source + "/" + e.path);
const edgeLink = (name) =>
  el("a", { href: "#/edge/" + encodeURIComponent(name), "data-key": "g" + name }, name);

// --- parts ---

// Bytes a second that were sent without a fetch from an origin. Bytes of recent lookahead are
// cached when they are requested, but still cost the origin: no saving.
const savedOf = (rates) => Math.max(0, rates.sent - rates.origin);

function edgeTable(edges) {
  return table(
    "Edges",
    [
      { title: "Edge", cell: (e) => edgeLink(e.name) },
      { title: "State", cell: (e) => state(e.degraded ? "degraded" : e.state) },
      {
        title: "Disk",
        cell: (e) => [
          el("meter", {
            min: 0,
            max: e.bytes_allowed || 1,
            value: e.bytes_used,
            "aria-label": "disk used by " + e.name,
          }),
          " " + Format.bytes(e.bytes_used) + " of " + Format.bytes(e.bytes_allowed),
        ],
      },
      { title: "Viewers", number: true, cell: (e) => Format.count(e.readers) },
      { title: "Sent", number: true, cell: (e) => Format.rate(e.rates.sent) },
      { title: "Saved", number: true, cell: (e) => Format.percent(savedOf(e.rates), e.rates.sent) },
      { title: "From origin", number: true, cell: (e) => Format.rate(e.rates.origin) },
      { title: "From peers", number: true, cell: (e) => Format.rate(e.rates.peer) },
      { title: "Stalls", number: true, cell: (e) => Format.count(e.stalls_total) },
      {
        title: "",
        cell: (e) =>
          button(
            e.state === "draining" ? "Undo drain of " + e.name : "Drain " + e.name,
            "d" + e.name,
            () =>
              act("/api/v1/edges/" + encodeURIComponent(e.name) + "/drain", {
                drain: e.state !== "draining",
              }),
          ),
      },
    ],
    edges,
    "No edge has joined yet. Start one: " +
      "cache-edge serve --name NAME --data-dir DIR --coordinator URL",
  );
}

// What each source costs and is worth, since its edges started.
function sourceTable(sources) {
  const down = (d) =>
    `${d.origin} is down at ${d.edge} for ${Format.duration(d.down_ms / 1000)}: ${d.error}`;
  return table(
    "Sources",
    [
      { title: "Source", cell: (s) => s.name },
      { title: "Sent", number: true, cell: (s) => Format.bytes(s.sent) },
      { title: "From the cache", number: true, cell: (s) => Format.percent(s.hit, s.sent) },
      { title: "From origins", number: true, cell: (s) => Format.bytes(s.origin) },
      { title: "Saved", number: true, cell: (s) => Format.bytes(savedOf(s)) },
      { title: "Errors", number: true, cell: (s) => Format.count(s.errors) },
      {
        title: "On disk",
        cell: (s) =>
          s.quota_bytes
            ? [
                el("meter", {
                  min: 0,
                  max: s.quota_bytes,
                  value: s.bytes_used,
                  "aria-label": "quota used by " + s.name,
                }),
                " " + Format.bytes(s.bytes_used) + " of " + Format.bytes(s.quota_bytes),
              ]
            : Format.bytes(s.bytes_used),
      },
      { title: "Origins", wide: true, cell: (s) => s.down.map(down).join("; ") || "up" },
    ],
    sources,
    "No source yet. Add one: cache-coordinator source add NAME BASE_URL",
  );
}

function jobTable(jobs) {
  return table(
    "Jobs",
    [
      {
        title: "Entry",
        wide: true,
        cell: (j) =>
          el("a", { href: "#/entry/" + j.entry, "data-key": "j" + j.id }, j.source + "/" + j.path),
      },
      { title: "State", cell: (j) => state(j.state) },
      {
        title: "Progress",
        cell: (j) => [
          el("progress", {
            max: j.bytes_total || 1,
            value: j.bytes_done,
            "aria-label": "progress of " + j.path,
          }),
          " " + Format.percent(j.bytes_done, j.bytes_total) + " of " + Format.bytes(j.bytes_total),
        ],
      },
      {
        title: "Rate",
        number: true,
        cell: (j) => (j.state === "running" ? Format.rate(j.rate) : ""),
      },
      {
        title: "Left",
        number: true,
        cell: (j) => (j.state === "running" ? Format.duration(j.eta_seconds) : ""),
      },
      { title: "Edges", cell: (j) => j.edges.join(", ") },
      { title: "Note", wide: true, cell: (j) => j.error || j.waiting || "" },
      {
        title: "",
        cell: (j) =>
          j.state === "running"
            ? button("Cancel", "c" + j.id, () => act("/api/v1/jobs/" + j.id + "/cancel"))
            : "",
      },
    ],
    jobs,
    "No jobs. Start one: cache-coordinator precache SOURCE/PATH",
  );
}

const LEVELS = ["critical", "high", "medium", "low"];
const LEVEL_MEANS = ["a viewer waits", "comes next", "was asked for", "completes an entry"];
const level = (f) => [
  el("i", { class: "swatch key-" + LEVELS[f.level - 1] }),
  LEVELS[f.level - 1].toUpperCase(),
];
const chunksOf = (f) =>
  Format.count(f.first) + (f.count > 1 ? "–" + Format.count(f.first + f.count - 1) : "");

// The urgent chunks: being fetched, and wanted but not yet begun.
function levelTiles(totals) {
  return el(
    "ul",
    { class: "levels" },
    LEVELS.map((name, i) =>
      el(
        "li",
        { class: "edge-" + name },
        el("b", {}, name.toUpperCase()),
        el("span", {}, LEVEL_MEANS[i]),
        el(
          "span",
          {},
          Format.count(totals.running[i]) +
            " fetching, " +
            Format.count(totals.queued[i]) +
            " waiting",
        ),
      ),
    ),
  );
}

// The scheduler's present fetches, and their reasons.
function flightTable(flights, without) {
  return table(
    "Fetches",
    [
      {
        title: "Entry",
        wide: true,
        cell: (f) =>
          el(
            "a",
            { href: "#/entry/" + f.entry, "data-key": "f" + f.edge + f.entry + f.first },
            f.object,
          ),
      },
      { title: "Edge", cell: (f) => edgeLink(f.edge) },
      { title: "Chunks", cell: chunksOf },
      { title: "Level", cell: level },
      { title: "From", cell: (f) => f.from },
      { title: "Why", wide: true, cell: (f) => f.reason },
    ].filter((c) => c.title !== without),
    flights || [],
    "Nothing is being fetched.",
  );
}

// The most important information: is all well, and if not, where not.
function verdictOf(o) {
  const wrong = [];
  for (const e of o.edges) {
    if (e.degraded) wrong.push(el("li", {}, edgeLink(e.name), " is degraded: ", e.reason));
    else if (e.state === "lost" || e.state === "suspect")
      wrong.push(
        el(
          "li",
          {},
          edgeLink(e.name),
          " is " + e.state + ": heard of " + Format.ago(e.last_seen_ms),
        ),
      );
    else if (e.bytes_allowed && e.bytes_used > e.bytes_allowed)
      wrong.push(el("li", {}, edgeLink(e.name), " holds more than it may"));
  }
  for (const s of o.sources)
    if (s.down.length)
      wrong.push(
        el("li", {}, `an origin of ${s.name} is down at ${s.down[0].edge}: ${s.down[0].error}`),
      );
  for (const j of o.jobs)
    if (j.state === "failed")
      wrong.push(
        el("li", {}, "a job failed: ", el("a", { href: "#/jobs" }, j.source + "/" + j.path)),
      );
  const who = "leader " + (o.leader || "unknown") + ", version " + o.version;
  if (!wrong.length)
    return el(
      "p",
      { class: "verdict good" },
      o.edges.length ? "All is well" : "No edge yet",
      el("span", { class: "soft" }, who),
    );
  return el(
    "div",
    { class: "verdict bad" },
    el(
      "p",
      {},
      wrong.length === 1 ? "One thing needs a look" : wrong.length + " things need a look",
      el("span", { class: "soft" }, who),
    ),
    el(
      "ul",
      {},
      wrong.slice(0, 8),
      wrong.length > 8 ? el("li", {}, "and " + (wrong.length - 8) + " more, below") : null,
    ),
  );
}

// --- views: each has `draw(overview)` and, if it must, `close()` ---

function clusterView() {
  const verdict = el("div"),
    totals = el("div"),
    levels = el("div"),
    sources = el("div"),
    worth = el("div"),
    edges = el("div"),
    jobs = el("div"),
    flights = el("div"),
    charts = el("div", { class: "plots" });
  main.replaceChildren(
    el("h2", {}, "Cluster"),
    verdict,
    totals,
    el("h2", {}, "Last hour"),
    charts,
    el("h2", {}, "Is it worth it? The last day"),
    worth,
    el("h2", {}, "Sources, since their edges started"),
    sources,
    el("h2", {}, "Edges"),
    edges,
    el("h2", {}, "Scheduler"),
    levels,
    flights,
    el("h2", {}, "Running jobs"),
    jobs,
  );
  const hour = Plots.lastHour(charts, "/api/v1/history"),
    day = Worth.lastDay(worth);
  return {
    draw(o) {
      const sum = (key) => o.edges.reduce((all, e) => all + e.rates[key], 0);
      const sent = sum("sent"),
        origin = sum("origin"),
        saved = Math.max(0, sent - origin);
      replace(verdict, verdictOf(o));
      replace(
        totals,
        cards([
          [
            o.edges.filter((e) => e.state === "active").length + " of " + o.edges.length,
            "edges active",
          ],
          [
            Format.bytes(o.totals.bytes_cached),
            "cached of " +
              Format.bytes(o.edges.reduce((all, e) => all + e.bytes_allowed, 0)) +
              ", " +
              Format.count(o.totals.chunks) +
              " chunks",
          ],
          [Format.rate(sent), "sent to viewers and peers"],
          [Format.rate(origin), "from origins"],
          [Format.percent(saved, sent), "of bytes sent cost no origin anything"],
          [Format.rate(saved), "saved at origins"],
          [Format.count(o.totals.readers), "viewers"],
          [Format.count(o.edges.reduce((all, e) => all + e.stalls_total, 0)), "stalls since start"],
        ]),
      );
      replace(levels, levelTiles(o.totals));
      replace(flights, flightTable(o.flights));
      replace(sources, sourceTable(o.sources));
      replace(edges, edgeTable(o.edges));
      replace(jobs, jobTable(o.jobs.filter((j) => j.state === "running")));
    },
    close() {
      hour.close();
      day.close();
    },
  };
}

function entriesView() {
  const list = el("div"),
    source = el("input", { id: "source", name: "source", list: "sources", autocomplete: "off" });
  let pages = [""];
  const more = el("button", { type: "button", hidden: true, onclick: () => load(false) }, "More");
  const rows = [];
  const load = async (fresh) => {
    if (fresh) {
      rows.length = 0;
      pages = [""];
    }
    try {
      const answer = await get(
        "/api/v1/entries?source=" +
          encodeURIComponent(source.value) +
          "&after=" +
          encodeURIComponent(pages[pages.length - 1]),
      );
      rows.push(...answer.entries);
      pages.push(answer.next);
      more.hidden = !answer.next;
      replace(
        list,
        table(
          "Entries",
          [
            { title: "Entry", wide: true, cell: entryLink },
            { title: "Size", number: true, cell: (e) => Format.bytes(e.size) },
            {
              title: "On edges",
              wide: true,
              cell: (e) =>
                e.edges.map((g) => g.edge + " " + Format.percent(g.bytes, e.size)).join(", ") ||
                "none",
            },
            { title: "Complete", cell: (e) => (e.complete ? "yes" : "no") },
            { title: "Pinned", cell: (e) => (e.pinned ? "yes" : "no") },
          ],
          rows,
          "No entries yet. Play something: http://EDGE/SOURCE/PATH",
        ),
      );
    } catch (error) {
      replace(list, el("p", { class: "notice" }, error.message));
    }
  };
  main.replaceChildren(
    el("h2", {}, "Entries"),
    el(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          load(true);
        },
      },
      el("label", { for: "source" }, "Source"),
      source,
      el(
        "datalist",
        { id: "sources" },
        ((overview && overview.sources) || []).map((s) => el("option", { value: s.name })),
      ),
      el("button", { type: "submit" }, "Show"),
    ),
    list,
    more,
  );
  load(true);
  return { draw() {} };
}

function entryView(id) {
  const title = el("h2", {}, "Entry"),
    facts = el("dl"),
    why = el(
      "p",
      { class: "soft", role: "status" },
      "Choose a chunk on the map, or give its number, to see why it is or is not fetched.",
    );
  const canvas = el("canvas", { role: "img", "aria-label": "chunk map" });
  const ranges = el("div"),
    flights = el("div"),
    sought = el("div"),
    seeks = Seeks.watch(),
    number = el("input", { id: "chunk", type: "number", min: 0, step: 1, inputmode: "numeric" });
  let entry = null,
    frame = 0;
  const explain = async (chunk) => {
    try {
      why.textContent = (await get("/api/v1/explain?entry=" + id + "&chunk=" + chunk)).summary;
    } catch (error) {
      why.textContent = error.message;
    }
  };
  canvas.addEventListener("click", (event) => {
    const hit = entry && ChunkMap.at(canvas, entry, event);
    if (hit) {
      number.value = hit.chunk;
      explain(hit.chunk);
    }
  });
  const key = (name, text) => el("li", {}, el("i", { class: "key-" + name }), text);
  main.replaceChildren(
    title,
    facts,
    el(
      "div",
      { class: "map" },
      el(
        "div",
        { class: "strips", tabindex: "0", role: "region", "aria-label": "Strips of the edges" },
        canvas,
      ),
      el(
        "ul",
        { class: "legend" },
        key("held", "held"),
        key("absent", "not held"),
        key("critical", "fetching: critical"),
        key("high", "high"),
        key("medium", "medium"),
        key("low", "low"),
        key("viewer", "▾ viewer, ⇢ seek"),
      ),
    ),
    el("h2", {}, "Why"),
    el(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          explain(number.value || 0);
        },
      },
      el("label", { for: "chunk" }, "Chunk"),
      number,
      el("button", { type: "submit" }, "Explain"),
    ),
    why,
    // Frequent changes first; the holdings may be a line for each of hundreds of edges.
    el("h2", {}, "In flight"),
    flights,
    el("h2", {}, "Seeks"),
    sought,
    el("h2", {}, "Held"),
    ranges,
  );
  const redraw = () => {
    if (entry && !frame)
      frame = requestAnimationFrame(() => {
        frame = 0;
        ChunkMap.draw(canvas, entry, seeks.fresh(Date.now()));
      });
  };
  const stream = Session.events(
    "/api/v1/entries/" + id + "/stream",
    (picture) => {
      entry = picture;
      title.textContent = entry.source + "/" + entry.path;
      const held = entry.edges.reduce((best, e) => Math.max(best, e.bytes), 0);
      canvas.setAttribute(
        "aria-label",
        "chunk map: " +
          entry.chunk_count +
          " chunks on " +
          entry.edges.length +
          " edges, at most " +
          Format.percent(held, entry.size) +
          " held on one; the table below says the same in words",
      );
      const fact = (name, value) => [el("dt", {}, name), el("dd", {}, value)];
      replace(
        facts,
        ...fact("Id", entry.id),
        ...fact(
          "Size",
          Format.bytes(entry.size) +
            ", " +
            Format.count(entry.chunk_count) +
            " chunks of " +
            Format.bytes(entry.chunk_size),
        ),
        ...fact("Validator", entry.validator),
        ...fact(
          "Viewers",
          Format.count(entry.viewers.length) +
            ", " +
            entry.viewers.filter((v) => v.waiting).length +
            " waiting",
        ),
      );
      replace(
        ranges,
        table(
          "Held ranges",
          [
            { title: "Edge", cell: (e) => edgeLink(e.edge) },
            { title: "Held", number: true, cell: (e) => Format.percent(e.bytes, entry.size) },
            {
              title: "Chunks",
              wide: true,
              cell: (e) =>
                e.runs
                  .slice(0, 12)
                  .map(([a, b]) => (b - a === 1 ? String(a) : a + "–" + (b - 1)))
                  .join(", ") +
                (e.runs.length > 12 ? " and " + (e.runs.length - 12) + " more runs" : ""),
            },
          ],
          entry.edges,
          "No edge holds any of it.",
        ),
      );
      replace(
        flights,
        table(
          "In flight",
          [
            { title: "Edge", cell: (f) => edgeLink(f.edge) },
            { title: "Chunks", cell: chunksOf },
            { title: "Level", cell: level },
            { title: "From", cell: (f) => f.from },
            { title: "Why", wide: true, cell: (f) => f.reason },
          ],
          entry.flights,
          "Nothing is being fetched.",
        ),
      );
      if (seeks.see(entry, Date.now())) setTimeout(redraw, Seeks.SHOWN_MS);
      const chunk = (at) => Format.count(Math.floor(at / entry.chunk_size));
      replace(
        sought,
        table(
          "Seeks",
          [
            { title: "At", cell: (s) => new Date(s.at).toLocaleTimeString() },
            { title: "Edge", cell: (s) => edgeLink(s.edge) },
            { title: "From chunk", number: true, cell: (s) => chunk(s.from) },
            { title: "To chunk", number: true, cell: (s) => chunk(s.to) },
          ],
          seeks.all(),
          "None since this page was opened.",
        ),
      );
      redraw();
    },
    () => {
      if (!entry) replace(facts, el("dt", {}, "Waiting"), el("dd", {}, "for the entry " + id));
    },
  );
  window.addEventListener("resize", redraw);
  return {
    draw() {},
    close() {
      stream.close();
      window.removeEventListener("resize", redraw);
    },
  };
}

function edgeView(name) {
  const facts = el("div"),
    flights = el("div"),
    charts = el("div", { class: "plots" }),
    jobs = el("div");
  main.replaceChildren(
    el("h2", {}, "Edge " + name),
    facts,
    el("h2", {}, "Last hour"),
    charts,
    el("h2", {}, "Being fetched"),
    flights,
    el("h2", {}, "Jobs here"),
    jobs,
  );
  const hour = Plots.lastHour(charts, "/api/v1/history?edge=" + encodeURIComponent(name));
  return {
    draw(o) {
      const edge = o.edges.find((e) => e.name === name);
      if (!edge) {
        replace(facts, el("p", { class: "notice" }, "No edge named " + name + " is known."));
        return;
      }
      replace(
        facts,
        cards([
          [
            edge.degraded ? "degraded" : edge.state,
            edge.degraded ? edge.reason : "heard of " + Format.ago(edge.last_seen_ms),
          ],
          [Format.bytes(edge.bytes_used), "of " + Format.bytes(edge.bytes_allowed) + " used"],
          [Format.count(edge.chunks), "chunks"],
          [Format.count(edge.readers), "viewers"],
          [Format.rate(edge.rates.sent), "sent"],
          [Format.percent(savedOf(edge.rates), edge.rates.sent), "saved at origins"],
          [Format.rate(edge.rates.origin), "from origins"],
          [Format.rate(edge.rates.peer), "from peers"],
        ]),
        el("p", {}, el("span", { class: "soft" }, "Reached at "), edge.url),
        edgeTable([edge]),
      );
      replace(
        flights,
        flightTable(
          (o.flights || []).filter((f) => f.edge === name),
          "Edge",
        ),
      );
      replace(
        jobs,
        jobTable(o.jobs.filter((j) => j.state === "running" && j.edges.includes(name))),
      );
    },
    close: hour.close,
  };
}

function jobsView() {
  const list = el("div");
  main.replaceChildren(el("h2", {}, "Jobs"), list);
  return {
    draw(o) {
      replace(list, jobTable(o.jobs));
    },
  };
}

// --- routes and the stream ---

// Pages that are reached from one in the menu.
const PART_OF = { entry: "entries", edge: "" };

function route() {
  if (Session.isRefused()) return;
  if (view && view.close) view.close();
  const [, page, rest] = (location.hash || "#/").match(/^#\/([a-z]*)\/?(.*)$/) || [null, "", ""];
  const views = {
    entries: entriesView,
    jobs: jobsView,
    entry: () => entryView(rest),
    edge: () => edgeView(decodeURIComponent(rest)),
  };
  view = (views[page] || clusterView)();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === "#/" + (PART_OF[page] ?? (views[page] ? page : "")))
      link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (overview) view.draw(overview);
}

window.addEventListener("hashchange", () => {
  route();
  main.focus();
});
// Charts and maps use the present colours.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", route);
route();

Session.events(
  "/api/v1/stream",
  (picture) => {
    overview = picture;
    if (Date.now() - answered > SAID_FOR_MS)
      tell("live" + (overview.is_leader ? "" : ", standby of " + overview.leader), true);
    if (view) view.draw(overview);
  },
  () => {
    if (!Session.isRefused()) tell("not connected; trying again", false);
  },
);
