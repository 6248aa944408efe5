"use strict";
// Text of any length. What is long is cut, says how much there is, and is shown whole on request, in pieces
// that the browser lays out only when they come into view.
(() => {
  const CHARS = 3000;
  const LINES = 40;
  const PIECE = 20000;

  View.longText = (text, { kind = "plain", chars = CHARS, lines = LINES } = {}) => {
    const render = (part) => (kind === "python" ? View.python(part) : part);
    const cut = cutAt(text, chars, lines);
    const box = View.el("div", "text " + kind);
    if (cut === text.length) {
      box.append(View.el("pre", "", render(text)));
      return box;
    }
    const body = View.el("div", "pieces");
    const button = View.el("button", { class: "more", type: "button" });
    let whole = false;
    const draw = () => {
      body.replaceChildren(
        ...(whole ? pieces(text).map((part) => View.el("pre", "piece", render(part))) : [View.el("pre", "faded", render(text.slice(0, cut)))]),
      );
      button.textContent = whole ? "show less" : `show all ${View.count(text.length)} characters`;
    };
    button.addEventListener("click", () => {
      whole = !whole;
      draw();
      if (!whole) box.scrollIntoView({ block: "nearest" });
    });
    draw();
    box.append(body, View.el("div", "more-row", button, View.copyButton(text)));
    return box;
  };

  function cutAt(text, chars, lines) {
    let end = -1;
    for (let n = 0; n < lines; n++) {
      end = text.indexOf("\n", end + 1);
      if (end === -1 || end > chars) break;
    }
    let cut = end === -1 || end > chars ? chars : end;
    // A cut that hides a line or two costs more than it saves.
    if (text.length <= cut * 1.2 && text.length <= chars * 1.2 && text.split("\n").length <= lines * 1.2) return text.length;
    if (cut >= text.length) return text.length;
    const code = text.charCodeAt(cut - 1);
    if (code >= 0xd800 && code <= 0xdbff) cut++; // not between the halves of a character
    return cut;
  }

  function pieces(text) {
    const parts = [];
    for (let start = 0; start < text.length; ) {
      let end = Math.min(text.length, start + PIECE);
      const newline = end < text.length ? text.lastIndexOf("\n", end) : -1;
      let next = end;
      if (newline > start) {
        end = newline;
        next = newline + 1;
      } else if (end < text.length) {
        const code = text.charCodeAt(end - 1);
        if (code >= 0xd800 && code <= 0xdbff) next = ++end;
      }
      parts.push(text.slice(start, end));
      start = next;
    }
    return parts;
  }

  View.copyButton = (text) => {
    if (!navigator.clipboard) return null;
    const button = View.el("button", { class: "more", type: "button" }, "copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        button.textContent = "the browser refused";
      }
      setTimeout(() => (button.textContent = "copy"), 1500);
    });
    return button;
  };

  // A reply's prose and its fenced code, in order: [{code: bool, text}].
  View.segments = (reply) => {
    const parts = [];
    const fence = /^(`{3,})[ \t]*(python|py|repl|)[ \t]*\n([^]*?)(?:^\1[ \t]*$|(?![^]))/gim;
    let end = 0;
    for (const match of reply.matchAll(fence)) {
      parts.push({ code: false, text: reply.slice(end, match.index) }, { code: true, text: match[3].replace(/\n$/, "") });
      end = match.index + match[0].length;
    }
    parts.push({ code: false, text: reply.slice(end) });
    return parts.map((part) => (part.code ? part : { code: false, text: part.text.replace(/^\n+|\s+$/g, "") })).filter((part) => part.code || part.text);
  };

  // JSON values as an outline of names and text.
  View.value = (value, depth = 0, { lines = 12 } = {}) => {
    const long = typeof value === "string" && (value.length > 80 || value.includes("\n"));
    if (long) return View.longText(value, { lines, chars: 1200 });
    if (value === null || typeof value !== "object") return View.el("span", "value", String(value));
    const entries = Object.entries(value);
    if (!entries.length) return View.el("span", "value muted", Array.isArray(value) ? "[]" : "{}");
    const flat = entries.every(([, item]) => item === null || typeof item !== "object");
    if (Array.isArray(value) && flat && JSON.stringify(value).length < 100) return View.el("span", "value", value.map(String).join(", "));
    const table = () =>
      View.el(
        "dl",
        "outline",
        entries.slice(0, 500).map(([name, item]) => [View.el("dt", "", name), View.el("dd", "", View.value(item, depth + 1))]),
        entries.length > 500 ? [View.el("dt", "", "…"), View.el("dd", "muted", View.plural(entries.length - 500, "more entry", "more entries"))] : null,
      );
    return depth < 1 ? table() : View.fold(View.plural(entries.length, Array.isArray(value) ? "item" : "field"), table);
  };
})();
