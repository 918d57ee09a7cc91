"use strict";
// Requests to the server: with the token this tab was given, if one is needed. It is kept for the
// tab alone and sent in a header, never in a cookie or a URL, so no other site can use it.

const Session = (() => {
  const KEY = "chunkcache-token";
  const RETRY_MS = 2000; // until a stream that broke is opened again
  let refused = null; // shown once, until a token is given

  function headers(more) {
    const token = sessionStorage.getItem(KEY);
    return token ? { ...more, authorization: "Bearer " + token } : more;
  }

  async function ask(path, options) {
    const answer = await fetch(path, { ...options, headers: headers(options.headers) });
    if (answer.ok) return answer;
    const reason =
      (await answer.json().catch(() => ({}))).detail || answer.status + " " + answer.statusText;
    if (answer.status === 401 || (answer.status === 403 && !options.method)) signIn(reason);
    throw Object.assign(new Error(reason), { status: answer.status });
  }

  function signIn(reason) {
    if (refused) return;
    const token = document.createElement("input"),
      label = document.createElement("label"),
      send = document.createElement("button");
    Object.assign(token, { id: "token", type: "password", autocomplete: "off", required: true });
    label.htmlFor = "token";
    label.textContent = "Token";
    send.textContent = "Sign in";
    refused = document.createElement("form");
    refused.append(label, token, send);
    refused.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, token.value.trim());
      location.reload();
    });
    const title = document.createElement("h2"),
      why = document.createElement("p");
    title.textContent = "Sign in";
    why.className = "notice";
    why.textContent = reason;
    document.getElementById("main").replaceChildren(title, why, refused);
    document.getElementById("live").textContent = "not signed in";
    token.focus();
  }

  // Server-sent events over fetch: EventSource can send no header. `close` ends the stream; a
  // broken one is opened again.
  function events(path, onEvent, onBreak) {
    const stop = new AbortController();
    async function once() {
      const answer = await ask(path, {
        headers: { accept: "text/event-stream" },
        signal: stop.signal,
      });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; ;) {
        const { value, done } = await reader.read();
        if (done) return;
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        for (const part of parts) {
          const data = part
            .split("\n")
            .filter((line) => line.startsWith("data:"))
            .map((line) => line.slice(5).trimStart());
          if (data.length) onEvent(JSON.parse(data.join("\n")));
        }
      }
    }
    (async () => {
      while (!stop.signal.aborted && !refused) {
        try {
          await once();
        } catch (error) {
          if (!stop.signal.aborted && onBreak) onBreak(error);
        }
        if (!stop.signal.aborted) await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    })();
    return { close: () => stop.abort() };
  }

  const out = document.getElementById("sign-out");
  out.hidden = !sessionStorage.getItem(KEY);
  out.addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    location.reload();
  });

  return { ask, events, isRefused: () => Boolean(refused) };
})();
