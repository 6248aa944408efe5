"use strict";
// What changed between two texts: lines first, then words within lines that were replaced. Common ends are
// cut off before the quadratic part, and a middle too large for it is shown as replaced whole.
(() => {
  const MOST_CELLS = 4e6;
  const CONTEXT = 3;
  const MOST_LINES = 2000; // shown of one change; more would be more elements than a browser lays out

  // [["=" | "-" | "+", item], ...] that turns list a into list b.
  View.diffLists = (a, b) => {
    let head = 0;
    while (head < a.length && head < b.length && a[head] === b[head]) head++;
    let tail = 0;
    while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
    return [
      ...a.slice(0, head).map((item) => ["=", item]),
      ...middle(a.slice(head, a.length - tail), b.slice(head, b.length - tail)),
      ...a.slice(a.length - tail).map((item) => ["=", item]),
    ];
  };

  function middle(a, b) {
    const replaced = () => [...a.map((item) => ["-", item]), ...b.map((item) => ["+", item])];
    if (!a.length || !b.length || a.length * b.length > MOST_CELLS) return replaced();
    const width = b.length + 1;
    const longest = new Uint16Array((a.length + 1) * width); // common subsequence of a[i:], b[j:]
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        longest[i * width + j] =
          a[i] === b[j]
            ? longest[(i + 1) * width + j + 1] + 1
            : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    const steps = [];
    let i = 0;
    let j = 0;
    while (i < a.length && j < b.length) {
      if (a[i] === b[j]) {
        steps.push(["=", a[i++]]);
        j++;
      } else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) steps.push(["-", a[i++]]);
      else steps.push(["+", b[j++]]);
    }
    while (i < a.length) steps.push(["-", a[i++]]);
    while (j < b.length) steps.push(["+", b[j++]]);
    return steps;
  }

  const lines = (text) => (text === "" ? [] : text.split("\n"));
  const wordsOf = (line) => line.match(/\s+|\w+|[^\s\w]/g) || [];

  // {added, removed, node}: lines counted, and the change as an element. Unchanged lines far from a change
  // are left out and counted.
  View.diff = (before, after) => {
    const steps = View.diffLists(lines(before), lines(after));
    const added = steps.filter(([kind]) => kind === "+").length;
    const removed = steps.filter(([kind]) => kind === "-").length;
    const node = View.el("div", "diff");
    for (let i = 0; i < steps.length; ) {
      if (steps[i][0] === "=") {
        let end = i;
        while (end < steps.length && steps[end][0] === "=") end++;
        same(node, steps.slice(i, end).map((step) => step[1]), i > 0, end < steps.length);
        i = end;
      } else {
        let end = i;
        while (end < steps.length && steps[end][0] !== "=") end++;
        changed(node, steps.slice(i, end));
        i = end;
      }
    }
    return { added, removed, node };
  };

  const line = (kind, mark, content) =>
    View.el("div", "diff-line " + kind, View.el("span", "diff-mark", mark), View.el("span", "diff-text", content));

  function same(node, list, afterChange, beforeChange) {
    const first = afterChange ? CONTEXT : 0;
    const last = beforeChange ? CONTEXT : 0;
    if (list.length <= first + last + 1) {
      for (const text of list) node.append(line("", " ", text));
      return;
    }
    for (const text of list.slice(0, first)) node.append(line("", " ", text));
    node.append(View.el("div", "diff-skip", View.plural(list.length - first - last, "unchanged line")));
    for (const text of last ? list.slice(-last) : []) node.append(line("", " ", text));
  }

  function changed(node, steps) {
    const gone = steps.filter(([kind]) => kind === "-").map((step) => step[1]);
    const come = steps.filter(([kind]) => kind === "+").map((step) => step[1]);
    const pairs = Math.min(gone.length, come.length, 200);
    const within = Array.from({ length: pairs }, (_, i) => words(gone[i], come[i]));
    side(node, "gone", "−", gone, within);
    side(node, "come", "+", come, within);
  }

  function side(node, kind, mark, texts, within) {
    texts.slice(0, MOST_LINES).forEach((text, i) => node.append(line(kind, mark, long(within[i] ? within[i][kind] : text))));
    const rest = texts.slice(MOST_LINES);
    if (rest.length) node.append(line(kind, mark, View.fold(View.plural(rest.length, "more line"), () => View.longText(rest.join("\n")))));
  }

  const long = (content) => (typeof content === "string" && content.length > 6000 ? View.longText(content) : content);

  function words(before, after) {
    if (before.length + after.length > 4000) return null;
    const steps = View.diffLists(wordsOf(before), wordsOf(after));
    const kept = steps.filter(([kind]) => kind === "=").reduce((sum, [, text]) => sum + text.trim().length, 0);
    if (kept * 3 < Math.max(before.length, after.length)) return null; // another line altogether
    const shown = (own) => steps.filter(([kind]) => kind === "=" || kind === own).map(([kind, text]) => (kind === "=" ? text : View.el("mark", "", text)));
    return { gone: shown("-"), come: shown("+") };
  }
})();
