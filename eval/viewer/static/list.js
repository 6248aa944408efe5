"use strict";
// The list: filters above, rows below. Only the rows in view are in the page, so that its length costs
// nothing; filtering and sorting work on plain arrays.
(() => {
  const HEIGHT = 52; // pixels, as in style.css
  const SPARE = 8; // rows kept above and below the view

  const CHOICES = [
    ["folder", "folder"],
    ["suite", "suite"],
    ["setting", "setting"],
    ["mode", "mode"],
    ["model", "model"],
    ["agent", "agent"],
    ["outcome", "outcome"],
    ["stop", "stop reason"],
  ];

  const total = (row, side) => (row[side + "_in"] || 0) + (row[side + "_out"] || 0);
  const COLUMNS = [
    { id: "outcome", head: "", title: "Outcome", value: (r) => Object.keys(View.OUTCOMES).indexOf(r.outcome), cell: outcomeCell },
    { id: "suite", head: "suite", value: (r) => r.suite, cell: (r) => [line(r.suite), line(r.task, "muted")] },
    { id: "mode", head: "mode", value: (r) => r.mode, cell: (r) => [line(r.mode), line(list.settings > 1 ? r.setting : r.step === null ? r.folder : "step " + r.step, "muted")] },
    { id: "model", head: "model", value: (r) => r.model, cell: (r) => [line(r.model.split("/").pop()), line(r.agent === "agent" ? "" : r.agent, "muted")] },
    { id: "question", head: "task and answer", value: (r) => r.question, cell: (r) => [line(r.question), line(r.error || (r.answer ? "→ " + r.answer : ""), r.error ? "bad" : "muted")] },
    { id: "reward", head: "reward", numeric: true, value: (r) => (View.isNumber(r.reward) ? r.reward : null), cell: rewardCell },
    { id: "turns", head: "turns", numeric: true, value: (r) => r.turns, cell: (r) => View.count(r.turns) },
    { id: "sub_calls", head: "sub-calls", numeric: true, value: (r) => r.sub_calls, cell: (r) => (r.sub_calls ? View.count(r.sub_calls) : "–") },
    { id: "root", head: "root tokens", numeric: true, value: (r) => total(r, "root"), cell: (r) => tokenCell(r, "root") },
    { id: "sub", head: "sub tokens", numeric: true, value: (r) => total(r, "sub"), cell: (r) => tokenCell(r, "sub") },
    { id: "seconds", head: "time", numeric: true, value: (r) => r.seconds, cell: (r) => View.seconds(r.seconds) },
    { id: "stop", head: "stop", value: (r) => r.stop, cell: (r) => View.el("span", "small muted", (r.stop || "").replaceAll("_", " ")) },
  ];

  const line = (text, kind = "") => View.el("div", "cell-line " + kind, text);

  function outcomeCell(row) {
    const [mark, label, kind] = View.OUTCOMES[row.outcome] || ["?", row.outcome, ""];
    return View.el("span", { class: "mark " + kind, title: label, role: "img", "aria-label": label }, mark);
  }

  function rewardCell(row) {
    if (!View.isNumber(row.reward)) return View.el("span", "muted", typeof row.reward === "string" ? row.reward : "–");
    const bar = View.el("span", { class: "bar-fill", width: Math.max(0, Math.min(1, row.reward)) * 100 + "%" });
    return [View.el("div", "strong", View.score(row.reward)), View.el("div", "bar", bar)];
  }

  function tokenCell(row, side) {
    if (!total(row, side)) return "–";
    return [line(View.short(row[side + "_in"]) + " in"), line(View.short(row[side + "_out"]) + " out", "muted")];
  }

  const list = {
    rows: [],
    shown: [], // indices into rows, filtered and sorted
    filters: {}, // name -> value; "q", "min", "max" beside those of CHOICES
    sort: { id: "", down: false }, // "" is the order of the files
    cursor: 0, // position in shown
    settings: 0, // how many settings there are
  };
  View.list = list;

  // --- filter and sort --------------------------------------------------------------------------------
  const haystacks = new WeakMap();
  function haystack(row) {
    if (!haystacks.has(row)) {
      const parts = [row.id, row.episode, row.file, row.suite, row.setting, row.mode, row.model, row.task, row.question, row.answer, row.error, row.stop];
      haystacks.set(row, parts.join("\n").toLowerCase());
    }
    return haystacks.get(row);
  }

  list.matches = (row, except = "") => {
    for (const [name] of CHOICES) {
      if (name !== except && list.filters[name] !== undefined && String(row[name] ?? "") !== list.filters[name]) return false;
    }
    const { q, min, max } = list.filters;
    if (min !== undefined && !(row.reward >= Number(min) && View.isNumber(row.reward))) return false;
    if (max !== undefined && !(row.reward <= Number(max) && View.isNumber(row.reward))) return false;
    return !q || q.toLowerCase().split(/\s+/).every((word) => haystack(row).includes(word));
  };

  list.update = () => {
    const chosen = list.rows[list.shown[list.cursor]];
    list.settings = new Set(list.rows.map((row) => row.setting)).size;
    const indices = [];
    for (let i = 0; i < list.rows.length; i++) if (list.matches(list.rows[i])) indices.push(i);
    const column = COLUMNS.find(({ id }) => id === list.sort.id);
    if (column) {
      const values = list.rows.map((row) => column.value(row));
      const sign = list.sort.down ? -1 : 1;
      const empty = (value) => value === null || value === undefined || value === "";
      indices.sort((i, j) => {
        if (empty(values[i]) || empty(values[j])) return empty(values[i]) - empty(values[j]) || i - j; // last, either way
        const order = column.numeric || typeof values[i] === "number" ? values[i] - values[j] : String(values[i]).localeCompare(String(values[j]));
        return sign * order || i - j;
      });
    }
    list.shown = indices;
    const at = chosen ? indices.indexOf(list.rows.indexOf(chosen)) : -1;
    list.cursor = at >= 0 ? at : 0;
  };

  // The filters and the order as a query, for the address bar.
  list.query = () => {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(list.filters)) query.set(name, value);
    if (list.sort.id) query.set("sort", (list.sort.down ? "-" : "") + list.sort.id);
    return query.toString();
  };

  list.setQuery = (text) => {
    const query = new URLSearchParams(text);
    const sort = query.get("sort") || "";
    query.delete("sort");
    const known = new Set(["q", "min", "max", ...CHOICES.map(([name]) => name)]);
    list.filters = Object.fromEntries([...query].filter(([name]) => known.has(name)));
    list.sort = { id: sort.replace(/^-/, ""), down: sort.startsWith("-") };
  };

  // --- the view ---------------------------------------------------------------------------------------
  let view = null; // elements of the list while it is on screen

  list.open = (main, { onOpen, onChange }) => {
    const controls = View.el("div", { class: "controls", role: "search" });
    const summary = View.el("div", { class: "summary", id: "summary", "aria-live": "polite" });
    const head = View.el("div", { class: "row head", role: "row" });
    const space = View.el("div", "space");
    const scroller = View.el("div", { class: "rows", id: "rows", tabindex: "0", role: "rowgroup", "aria-label": "Traces" }, space);
    const table = View.el("div", { class: "table", role: "table" }, head, scroller);
    view = { controls, summary, head, space, scroller, onOpen, onChange };
    scroller.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
    new ResizeObserver(() => draw()).observe(scroller);
    scroller.addEventListener("click", (event) => {
      const row = event.target.closest("[data-at]");
      if (row) list.go(Number(row.dataset.at));
    });
    main.replaceChildren(View.el("section", "list", controls, summary, table));
    list.refresh();
    show(list.cursor, true);
  };

  list.close = () => (view = null);

  // After rows, filters or order changed.
  list.refresh = () => {
    list.update();
    if (!view) return;
    drawControls();
    drawHead();
    drawSummary();
    view.space.style.height = list.shown.length * HEIGHT + "px";
    draw();
  };

  function changed() {
    list.refresh();
    if (view) {
      view.scroller.scrollTop = 0;
      list.cursor = 0;
      draw();
      view.onChange();
    }
  }

  function set(name, value) {
    if (value === "" || value === undefined) delete list.filters[name];
    else list.filters[name] = value;
    changed();
  }

  function drawControls() {
    const had = document.activeElement?.id;
    if (!view.search) {
      view.search = View.el("input", { id: "search", type: "search", placeholder: "Search (/)", title: "Words in the task, answer, model, error, file or id", "aria-label": "Search", oninput: (e) => set("q", e.target.value) });
      view.min = number("min", "min");
      view.max = number("max", "max");
      view.clear = View.el("button", { type: "button", id: "clear", onclick: () => ((list.filters = {}), changed()) }, "clear");
      view.choices = View.el("span", "choices");
      view.controls.append(view.search, view.choices, View.el("span", "range", "reward", view.min, view.max), view.clear);
    }
    for (const name of ["min", "max"]) if (document.activeElement !== view[name]) view[name].value = list.filters[name] ?? "";
    if (document.activeElement !== view.search) view.search.value = list.filters.q ?? "";
    view.clear.hidden = !Object.keys(list.filters).length;
    view.choices.replaceChildren(...CHOICES.map(([name, label]) => choice(name, label)).filter(Boolean));
    if (had?.startsWith("filter-")) document.getElementById(had)?.focus();
  }

  const number = (name, label) => View.el("input", { id: name, type: "number", step: "any", placeholder: label, "aria-label": "reward, " + label, oninput: (e) => set(name, e.target.value) });

  // A choice among the values that the other filters leave, with how many rows each would show.
  function choice(name, label) {
    const counts = new Map();
    let distinct = new Set();
    for (const row of list.rows) {
      const value = String(row[name] ?? "");
      distinct.add(value);
      if (list.matches(row, name)) counts.set(value, (counts.get(value) || 0) + 1);
    }
    const chosen = list.filters[name];
    if (distinct.size < 2 && chosen === undefined) return null;
    const values = [...new Set([...counts.keys(), ...(chosen === undefined ? [] : [chosen])])].sort();
    const option = (value, text) => View.el("option", { value: "=" + value, selected: value === chosen }, text);
    return View.el(
      "select",
      { id: "filter-" + name, "aria-label": label, class: chosen === undefined ? "" : "set", onchange: (e) => set(name, e.target.value === "" ? undefined : e.target.value.slice(1)) },
      View.el("option", { value: "" }, "any " + label),
      values.map((value) => option(value, `${value.replaceAll("_", " ") || "(none)"} (${View.count(counts.get(value) || 0)})`)),
    );
  }

  function drawHead() {
    view.head.replaceChildren(
      ...COLUMNS.map((column) => {
        const active = list.sort.id === column.id;
        const arrow = active ? (list.sort.down ? " ↓" : " ↑") : "";
        const sort = () => {
          // First click: the interesting end first; then the other; then the order of the files.
          const first = Boolean(column.numeric);
          if (!active) list.sort = { id: column.id, down: first };
          else list.sort = list.sort.down === first ? { id: column.id, down: !first } : { id: "", down: false };
          changed();
        };
        const state = active ? (list.sort.down ? "descending" : "ascending") : "none";
        return View.el(
          "div",
          { class: "cell c-" + column.id + (column.numeric ? " numeric" : ""), role: "columnheader", "aria-sort": state },
          View.el("button", { type: "button", id: "sort-" + column.id, onclick: sort, title: "Sort by " + (column.title || column.head) }, (column.head || "◦") + arrow),
        );
      }),
    );
  }

  function drawSummary() {
    const rows = list.shown.map((i) => list.rows[i]);
    const scored = rows.map((row) => row.reward).filter(View.isNumber);
    const unscored = rows.length - scored.length;
    const mean = scored.reduce((sum, value) => sum + value, 0) / scored.length;
    const parts = [
      View.el("b", "", rows.length === list.rows.length ? View.plural(rows.length, "trace") : `${View.count(rows.length)} of ${View.plural(list.rows.length, "trace")}`),
      scored.length ? [" · mean reward ", View.el("b", "", View.score(mean)), unscored ? ` over ${View.count(scored.length)} scored` : ""] : null,
      unscored ? [" · ", View.el("b", "", View.count(unscored)), " without a reward"] : null,
      ["root_out", "sub_out"].map((name) => {
        const values = rows.map((row) => row[name]).filter(View.isNumber).sort((a, b) => a - b);
        const middle = values[Math.floor((values.length - 1) / 2)];
        return middle ? ` · median ${name === "root_out" ? "root" : "sub-LLM"} completion ${View.short(middle)} tok` : null;
      }),
    ];
    view.summary.replaceChildren();
    view.summary.append(...parts.flat(4).filter((part) => part !== null && part !== undefined));
  }

  function draw() {
    if (!view) return;
    const first = Math.max(0, Math.floor(view.scroller.scrollTop / HEIGHT) - SPARE);
    const last = Math.min(list.shown.length, Math.ceil((view.scroller.scrollTop + view.scroller.clientHeight) / HEIGHT) + SPARE);
    const nodes = [];
    for (let at = first; at < last; at++) nodes.push(drawRow(at));
    if (!list.shown.length) nodes.push(View.el("p", "empty", list.rows.length ? "No trace matches these filters." : "No traces yet. They appear here as they are written."));
    view.space.replaceChildren(...nodes);
  }

  function drawRow(at) {
    const row = list.rows[list.shown[at]];
    const node = View.el(
      "div",
      { class: "row" + (at === list.cursor ? " cursor" : ""), role: "row", "data-at": at, "data-key": row.key, "aria-rowindex": at + 1 },
      COLUMNS.map((column) => View.el("div", { class: "cell c-" + column.id + (column.numeric ? " numeric" : ""), role: "cell" }, column.cell(row))),
    );
    node.style.transform = `translateY(${at * HEIGHT}px)`;
    return node;
  }

  function show(at, centre = false) {
    const { scroller } = view;
    const top = at * HEIGHT;
    if (centre) scroller.scrollTop = top - scroller.clientHeight / 2 + HEIGHT;
    else if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (top + HEIGHT > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top + HEIGHT - scroller.clientHeight;
    draw();
  }

  list.move = (step) => {
    if (!view || !list.shown.length) return;
    list.cursor = Math.max(0, Math.min(list.shown.length - 1, list.cursor + step));
    show(list.cursor);
  };

  list.go = (at = list.cursor) => {
    const row = list.rows[list.shown[at]];
    if (!row || !view) return;
    list.cursor = at;
    view.onOpen(row.key);
  };

  // The trace before (-1) or after (1) `key` in the order of the list.
  list.neighbour = (key, step) => {
    const at = list.shown.findIndex((i) => list.rows[i].key === key);
    return at < 0 ? null : list.rows[list.shown[at + step]]?.key || null;
  };

  list.point = (key) => {
    const at = list.shown.findIndex((i) => list.rows[i].key === key);
    if (at >= 0) list.cursor = at;
    return at;
  };
})();
