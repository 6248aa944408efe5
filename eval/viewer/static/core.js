"use strict";
// The one way to make elements: children are elements or text. Nothing in these files parses HTML, and the
// page's policy (require-trusted-types-for) would stop it if it tried.
const View = {};

(() => {
  View.el = (tag, props, ...children) => {
    const node = document.createElement(tag);
    if (typeof props === "string") node.className = props;
    else for (const [name, value] of Object.entries(props || {})) set(node, name, value);
    append(node, children);
    return node;
  };

  function set(node, name, value) {
    if (value === null || value === undefined || value === false) return;
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "width") node.style.width = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }

  function append(node, children) {
    for (const child of children) {
      if (Array.isArray(child)) append(node, child);
      else if (child === null || child === undefined || child === false) continue;
      else node.append(child instanceof Node ? child : String(child));
    }
  }

  // A <details> whose body is made when it is first opened: a trace can have thousands of messages.
  View.fold = (summary, body, { open = false, kind = "" } = {}) => {
    const node = View.el("details", "fold " + kind, View.el("summary", "", summary));
    const fill = () => {
      if (node.dataset.filled || !node.open) return;
      node.dataset.filled = "yes";
      append(node, [body()]);
    };
    node.addEventListener("toggle", fill);
    View.openers.set(node, fill);
    if (open) {
      node.open = true;
      fill();
    }
    return node;
  };
  View.openers = new WeakMap();

  // Opens (or closes) all folds below `root`, those inside others included, up to a number that a browser
  // lays out at once.
  View.setFolds = (root, open, most = 1500) => {
    let count = 0;
    for (let wave = [root]; wave.length && count < most; ) {
      const found = wave.flatMap((node) => [...node.querySelectorAll("details.fold")]);
      const todo = found.filter((node) => node.open !== open).slice(0, most - count);
      for (const node of todo) {
        node.open = open;
        if (open) View.openers.get(node)?.();
      }
      count += todo.length;
      wave = open ? todo : [];
    }
    return count;
  };

  View.chip = (text, kind = "", title = "") => View.el("span", { class: "chip " + kind, title: title || null }, text);

  // --- numbers ---------------------------------------------------------------------------------------
  View.isNumber = (value) => typeof value === "number" && Number.isFinite(value);
  View.count = (value) => (View.isNumber(value) ? value.toLocaleString("en-US") : "–");
  View.short = (value) => {
    if (!View.isNumber(value)) return "–";
    if (Math.abs(value) < 10000) return View.count(Math.round(value));
    if (Math.abs(value) < 999500) return (value / 1e3).toFixed(Math.abs(value) < 99950 ? 1 : 0) + "k";
    return (value / 1e6).toFixed(Math.abs(value) < 99950000 ? 2 : 0) + "M";
  };
  View.seconds = (value) => {
    if (!View.isNumber(value)) return "–";
    if (value < 0.0005) return "0 s";
    if (value < 1) return (value * 1000).toFixed(0) + " ms";
    if (value < 60) return value.toFixed(1) + " s";
    if (value < 3600) return Math.floor(value / 60) + " min " + String(Math.floor(value % 60)).padStart(2, "0") + " s";
    return Math.floor(value / 3600) + " h " + String(Math.floor((value % 3600) / 60)).padStart(2, "0") + " min";
  };
  View.score = (value) => {
    if (typeof value === "string") return value; // NaN or an infinity, spelled
    if (!View.isNumber(value)) return "–";
    return Number.isInteger(value) && Math.abs(value) >= 10 ? View.count(value) : value.toFixed(Math.abs(value) < 10 ? 3 : 1).replace(/(\.\d\d)0$/, "$1");
  };
  View.tokens = (into, out) => View.short(into) + " → " + View.short(out) + " tok";
  View.plural = (n, one, many = one + "s") => View.count(n) + " " + (n === 1 ? one : many);
  View.firstLine = (text, limit = 160) => {
    const line = text.slice(0, limit * 4).split("\n").map((part) => part.trim()).find(Boolean) || "";
    return line.length > limit ? line.slice(0, limit - 1) + "…" : line;
  };

  View.OUTCOMES = {
    answered: ["●", "answered", "good"],
    limit: ["◐", "ended by a limit", "warn"],
    timeout: ["◷", "timed out", "warn"],
    overflow: ["⊘", "prompt beyond the window", "bad"],
    error: ["✕", "failed, not scored", "bad"],
    running: ["○", "not finished", ""],
  };
})();
