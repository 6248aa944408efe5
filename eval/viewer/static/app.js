"use strict";
// Addresses, keys, theme, and following a run that is still writing.
(() => {
  const { el, list, source } = View;
  const $ = (id) => document.getElementById(id);
  const KEY = /^[0-9a-f]+-\d+-\d+$/;
  const FOLLOW_MS = 3000;
  const SCANNING_MS = 300;

  let generation = -1;
  let open = null; // key of the trace on screen
  let wanted = 0; // counts navigations, so that a late answer to an earlier one is dropped

  function notice(text) {
    $("notice").hidden = !text;
    $("notice").textContent = text;
  }

  // --- rows -----------------------------------------------------------------------------------------
  async function follow() {
    let wait = FOLLOW_MS;
    try {
      const answer = await source.index(generation, generation < 0 ? 0 : list.rows.length);
      const reset = answer.generation !== generation;
      if (reset) list.rows = [];
      generation = answer.generation;
      if (answer.from <= list.rows.length) list.rows.splice(answer.from, Infinity, ...answer.rows);
      $("where").textContent = answer.root;
      document.title = "Traces: " + answer.root;
      const broken = answer.problem_count;
      notice(broken ? `${View.plural(broken, "line")} could not be read: ${answer.problems.slice(0, 3).join("; ")}${broken > 3 ? "; …" : ""}` : "");
      $("live").hidden = !source.live;
      $("live").textContent = answer.scanned ? "following" : `reading … ${View.count(answer.total)}`;
      if (answer.rows.length || reset) list.refresh();
      if (!answer.scanned) wait = SCANNING_MS;
    } catch (error) {
      notice(error.message);
    }
    if (source.live) setTimeout(follow, document.hidden ? 5 * wait : wait);
  }

  // --- addresses ------------------------------------------------------------------------------------
  // #/?suite=…&sort=-reward is the list, #/trace/KEY a trace.
  async function route() {
    const own = ++wanted;
    const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
    const key = path.startsWith("trace/") ? path.slice(6) : "";
    if (!KEY.test(key)) {
      if (query || !open) list.setQuery(query);
      if (open) list.point(open);
      open = null;
      list.open($("main"), { onOpen: go, onChange: remember });
      $("rows").focus({ preventScroll: true });
      return;
    }
    list.close();
    open = key;
    list.point(key);
    $("main").replaceChildren(el("p", "loading", "loading …"));
    let node;
    try {
      const doc = await source.trace(key);
      if (own !== wanted) return;
      node = View.episode(doc, { onMove: move });
    } catch (error) {
      if (own !== wanted) return;
      node = el("div", "problem", el("b", "", "This trace cannot be shown. "), error.message, " ", el("a", { href: "#/" }, "To the list"));
    }
    $("main").replaceChildren(node);
    window.scrollTo(0, 0);
    $("main").focus({ preventScroll: true });
  }

  const go = (key) => (location.hash = "#/trace/" + key);

  function remember() {
    const query = list.query();
    history.replaceState(null, "", "#/" + (query ? "?" + query : ""));
  }

  function move(step) {
    const query = list.query();
    if (!step) location.hash = "#/" + (query ? "?" + query : "");
    else {
      const next = list.neighbour(open, step);
      if (next) go(next);
    }
  }

  // --- theme ----------------------------------------------------------------------------------------
  const THEMES = ["auto", "light", "dark"];
  let theme = "auto";
  try {
    theme = localStorage.getItem("rlm-view-theme") || "auto";
  } catch {
    // Storage is refused to some files and private windows; the theme then lasts as long as the page.
  }

  function setTheme(name) {
    theme = THEMES.includes(name) ? name : "auto";
    document.documentElement.dataset.theme = theme;
    $("theme").textContent = theme + " theme";
    try {
      localStorage.setItem("rlm-view-theme", theme);
    } catch {
      // As above.
    }
  }
  const nextTheme = () => setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);

  // --- keys -----------------------------------------------------------------------------------------
  const HELP = [
    ["list", ""],
    ["↓ ↑ or j k", "move"],
    ["Enter", "open the trace"],
    ["/", "search"],
    ["Esc", "leave the search"],
    ["trace", ""],
    ["j k", "next, previous turn"],
    ["] [", "next, previous trace"],
    ["e c", "open, close everything"],
    ["1 2 3", "tabs"],
    ["Esc", "back to the list"],
    ["anywhere", ""],
    ["t", "theme"],
    ["?", "this"],
  ];

  function help() {
    const close = el("button", { type: "button", onclick: () => $("keys").close() }, "close");
    const rows = HELP.map(([keys, what]) => (what ? [el("dt", "", keys), el("dd", "", what)] : el("dt", "section", keys)));
    $("keys").replaceChildren(el("h2", "", "Keys"), el("dl", "keys", rows), close);
    $("keys").showModal();
  }

  function turn(step) {
    const turns = [...document.querySelectorAll("#panel > .tree > .turn, #panel > .branches > details")];
    if (!turns.length) return;
    const edge = document.querySelector(".episode-head").getBoundingClientRect().bottom + 12;
    const passed = turns.filter((node) => node.getBoundingClientRect().top <= edge).length - 1;
    const next = turns[Math.max(0, Math.min(turns.length - 1, passed + step))];
    next.scrollIntoView({ block: "start" });
    next.focus({ preventScroll: true });
  }

  const inList = {
    j: () => list.move(1),
    ArrowDown: () => list.move(1),
    k: () => list.move(-1),
    ArrowUp: () => list.move(-1),
    PageDown: () => list.move(10),
    PageUp: () => list.move(-10),
    Home: () => list.move(-Infinity),
    End: () => list.move(Infinity),
    Enter: () => list.go(),
    "/": () => $("search").focus(),
  };
  const inTrace = {
    j: () => turn(1),
    k: () => turn(-1),
    "]": () => move(1),
    "[": () => move(-1),
    e: () => View.setFolds($("panel"), true),
    c: () => View.setFolds($("panel"), false),
    Escape: () => move(0),
    ...Object.fromEntries([0, 1, 2].map((i) => [String(i + 1), () => document.querySelectorAll(".tabs [role=tab]")[i]?.click()])),
  };
  const anywhere = { t: nextTheme, "?": help };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    const typing = event.target.closest?.("input, select, textarea");
    if (typing) {
      if (event.key === "Escape" || (event.key === "Enter" && event.target.id === "search")) {
        $("rows")?.focus();
        event.preventDefault();
      }
      return;
    }
    // Enter on a button or a fold is that button's.
    if (event.key === "Enter" && event.target.closest?.("button, summary, a")) return;
    const action = (open ? inTrace : inList)[event.key] || anywhere[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  $("theme").addEventListener("click", nextTheme);
  $("help").addEventListener("click", help);
  window.addEventListener("hashchange", route);
  setTheme(theme);
  route();
  follow();
})();
