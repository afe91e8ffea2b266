// What the page may change: a silence, a window. Each needs the agent's token, which is asked for once and
// kept in this tab only.
import { $, el } from "./words.js";

const KEY = "skewtrap-token";
const token = {
  get: () => { try { return sessionStorage.getItem(KEY); } catch { return token.kept || null; } },
  set: value => { token.kept = value; try { value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY); } catch { /* kept in the page alone */ } },
};

async function post(path, body) {
  const headers = { "Content-Type": "application/json", Authorization: "Bearer " + token.get() };
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer.said || "done";
  if (response.status === 401) token.set(null);
  throw new Error(answer.error || "it answered " + response.status);
}

// Asks for what is needed, sends it, and shows the answer in the same dialog.
function ask({ title, about, fields, button, send }) {
  const dialog = $("dialog"), problem = el("p", { class: "problem", role: "alert" });
  const needsToken = !token.get();
  const secret = el("input", { type: "password", autocomplete: "off", required: needsToken, id: "token" });
  const tokenField = el("label", { class: "field", hidden: !needsToken }, "token of the agent", secret,
    el("span", { class: "small quiet" }, "the value of token in its configuration; without one, of the file api-token in its state folder (~/.local/state/skewtrap)"));
  const sender = el("button", { type: "submit", class: "primary" }, button);
  const close = el("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const form = el("form", {}, el("h2", { id: "dialog-title" }, title), el("p", { class: "quiet" }, about), ...fields, tokenField, problem, el("div", { class: "buttons" }, close, sender));
  form.addEventListener("submit", async event => {
    event.preventDefault();
    if (secret.value) token.set(secret.value.trim());
    sender.disabled = true;
    problem.textContent = "";
    try {
      const said = await send();
      form.replaceChildren(el("h2", { id: "dialog-title" }, title), el("p", { role: "status" }, said), el("div", { class: "buttons" }, el("button", { type: "button", class: "primary", autofocus: true, onclick: () => dialog.close() }, "Close")));
      form.querySelector("button").focus();
    } catch (error) {
      problem.textContent = error.message;
      if (!token.get()) { tokenField.hidden = false; secret.required = true; secret.value = ""; secret.focus(); }
    }
    sender.disabled = false;
  });
  dialog.replaceChildren(form);
  dialog.showModal();
  (form.querySelector("select, input:not([type=password])") || secret).focus();
}

const field = (name, control) => el("label", { class: "field" }, name, control);

export function silence(rule) {
  const length = el("select", {}, ...[["3600", "one hour"], ["14400", "four hours"], ["86400", "one day"], ["604800", "one week"]].map(([s, words]) => el("option", { value: s }, words)));
  const why = el("input", { type: "text", maxlength: 200, placeholder: "load test" });
  ask({
    title: "Silence " + rule, about: "No messages and no windows of this rule meanwhile; anything still firing afterwards is reported then.", button: "Silence",
    fields: [field("for", length), field("why (others see it)", why)],
    send: () => post("/api/v1/silence", { rule, for_s: Number(length.value), ...(why.value ? { why: why.value } : {}) }),
  });
}

export function endSilence(s) {
  ask({
    title: "End the silence of " + (s.rule || "every rule"), about: "Messages and windows come again from now on.", button: "End it", fields: [],
    send: () => post("/api/v1/silence", { ...(s.rule ? { rule: s.rule } : {}), ...(s.target ? { target: s.target } : {}), for_s: 0 }),
  });
}

export function capture(target) {
  const why = el("input", { type: "text", maxlength: 200, placeholder: "a look" });
  ask({
    title: "Start a window on " + target, about: "One short profile, within the limits that hold for rules too: where they refuse it, the reason is shown here.", button: "Start window",
    fields: [field("why (shown in the incident)", why)],
    send: () => post("/api/v1/capture", { target, ...(why.value ? { reason: why.value } : {}) }),
  });
}

// Hands a trace to ui.perfetto.dev in a window of its own. The trace goes from this page to that window and
// to no server; nothing of it happens before the click.
export async function openInPerfetto(href, title, note) {
  const ORIGIN = "https://ui.perfetto.dev", other = window.open(ORIGIN);
  if (!other) { note("the browser blocked the window of Perfetto; allow it for this page"); return; }
  note("reading the trace …");
  let timer = null;
  try {
    const response = await fetch(href);
    if (!response.ok) throw new Error("the trace cannot be read: " + response.status);
    const buffer = await response.arrayBuffer();
    note("waiting for Perfetto …");
    await new Promise((resolve, reject) => {
      let left = 100;
      const heard = event => { if (event.source === other && event.origin === ORIGIN && event.data === "PONG") { removeEventListener("message", heard); resolve(); } };
      addEventListener("message", heard);
      timer = setInterval(() => {
        if (other.closed || left === 0) { removeEventListener("message", heard); reject(new Error(left ? "the window of Perfetto was closed" : "Perfetto did not answer; is ui.perfetto.dev reachable from here?")); }
        left -= 1;
        other.postMessage("PING", ORIGIN);
      }, 200);
    });
    other.postMessage({ perfetto: { buffer, title, fileName: title } }, ORIGIN);
    note("");
  } catch (error) {
    note(error.message);
  } finally {
    clearInterval(timer);
  }
}
