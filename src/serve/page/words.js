// Building elements, and the page's names and numbers. Elements are built by hand, so no text of a log or
// a trace is ever taken for HTML.

export const $ = id => document.getElementById(id);

export function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter(c => c !== null && c !== undefined && c !== ""));
  return node;
}

export function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const shown = {};

// Replaces a part of the page only where its data changed: a selection or a scroll position in the rest
// survives, and the focus goes to the new element of the same data-key.
export function draw(id, data, build) {
  const key = JSON.stringify(data);
  if (shown[id] === key) return;
  shown[id] = key;
  replace($(id), [].concat(build(data)));
}

export function forget(...ids) {
  for (const id of ids.length ? ids : Object.keys(shown)) delete shown[id];
}

export function replace(parent, children) {
  const at = document.activeElement, key = at && parent.contains(at) ? at.dataset.key : undefined;
  const open = new Map([...parent.querySelectorAll("details[data-key]")].map(d => [d.dataset.key, d.open]));
  parent.replaceChildren(...children);
  for (const details of parent.querySelectorAll("details[data-key]")) details.open = open.get(details.dataset.key) ?? details.open;
  if (key !== undefined) [...parent.querySelectorAll("[data-key]")].find(n => n.dataset.key === key)?.focus();
}

const AXES = { dp_rank: "DP", tp_rank: "TP", pp_rank: "PP", ep_rank: "EP", attn_cp_rank: "ATTN_CP", moe_dp_rank: "MOE_DP" };
export const rankName = labels => Object.entries(labels || {}).map(([k, v]) => AXES[k] ? AXES[k] + v : k + "=" + v).join(" ") || "engine";
export const labelText = labels => Object.entries(labels || {}).map(([k, v]) => k + "=" + v).join(" ");
export const within = (a, b) => Object.entries(a).every(([name, value]) => b[name] === value);
export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

export function figure(v) {
  if (v === null || v === undefined) return "–";
  const size = Math.abs(v), digits = size >= 100 || v === 0 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 4;
  return String(Number(v.toFixed(digits)));
}

// Times are UTC and say so, as in messages and in the agent's own sentences: a card with two zones is misread.
const stamp = ms => new Date(ms).toISOString();

export function clock(s) {
  const at = stamp(s * 1000), day = at.slice(0, 10);
  return (day === stamp(Date.now()).slice(0, 10) ? "" : day + " ") + at.slice(11, 19) + " UTC";
}

export const minute = s => stamp(s * 1000).slice(11, 16);

export function span(s) {
  if (s < 0) s = 0;
  if (s < 90) return Math.round(s) + " s";
  if (s < 5400) return Math.round(s / 60) + " min";
  return s < 172800 ? Math.round(s / 3600) + " h" : Math.round(s / 86400) + " days";
}

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (n >= 1024 && i < 4) { n /= 1024; i += 1; }
  return figure(n) + " " + units[i];
}

export const count = (n, one, many) => n + " " + (n === 1 ? one : many || one + "s");
export const badge = (word, text) => el("span", { class: "badge " + word }, text || word);
