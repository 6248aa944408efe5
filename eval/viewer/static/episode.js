"use strict";
// One trace: what was asked, answered and scored, then its turns (or conversations), then the record.
(() => {
  const { el } = View;

  View.problem = (error) =>
    el(
      "div",
      { class: "problem", role: "note" },
      el("b", "", error.type || "error", error.status ? ` (HTTP ${error.status})` : ""),
      error.message ? View.longText(error.message, { lines: 8, chars: 1500 }) : null,
      error.traceback ? View.fold("traceback", () => View.longText(error.traceback, { kind: "output" }), { kind: "quiet" }) : null,
    );

  View.toolCall = (call) => {
    let shown = call.arguments;
    let kind = "output";
    try {
      const value = JSON.parse(call.arguments);
      const [[name, only] = [], ...others] = Object.entries(value);
      if (name === "code" && typeof only === "string" && !others.length) [shown, kind] = [only, "python"];
      else shown = JSON.stringify(value, null, 2);
    } catch {
      // Arguments that the model got wrong are shown as it wrote them.
    }
    return el("div", "tool-call", el("b", "mono", call.name), View.longText(shown, { kind, lines: 20 }));
  };

  // --- messages -------------------------------------------------------------------------------------
  const roleName = (message) => message.role + (message.name ? " " + message.name : "");

  function messageBody(message) {
    return [
      message.reasoning ? View.fold("reasoning", () => View.longText(message.reasoning), { kind: "quiet" }) : null,
      message.images ? el("p", "muted", View.plural(message.images, "image") + ", in the trace file") : null,
      message.text ? parts(message) : null,
      (message.tool_calls || []).map(View.toolCall),
      !message.text && !message.reasoning && !message.tool_calls && !message.images ? el("p", "muted", "empty") : null,
    ];
  }

  const parts = (message) => (message.sampled ? View.segments(message.text).map((part) => View.longText(part.text, { kind: part.code ? "python" : "plain" })) : View.longText(message.text, { lines: 24 }));

  View.message = (doc, index) => {
    const message = doc.nodes[index];
    const call = message.call === undefined ? null : doc.calls[message.call];
    return el(
      "div",
      "message " + (["system", "user", "assistant", "tool"].includes(message.role) ? message.role : ""),
      el(
        "div",
        "message-head",
        el("b", "", roleName(message)),
        call ? el("span", "muted", `${View.tokens(call.in, call.out)} · ${View.seconds(call.seconds)}`, call.request_id ? " · " + call.request_id : "") : null,
        call?.cached ? el("span", "muted", View.short(call.cached) + " cached") : null,
        call?.finish === "length" ? View.chip("cut at the token limit", "warn") : null,
      ),
      call?.error ? View.problem(call.error) : null,
      messageBody(message),
    );
  };

  View.messageFold = (doc, index) => {
    const message = doc.nodes[index];
    const title = [el("b", "", roleName(message)), " ", el("span", "muted", `${View.plural(message.text.length, "character")} · ${View.firstLine(message.text, 110)}`)];
    return View.fold(title, () => el("div", "", messageBody(message)), { kind: "quiet" });
  };

  function conversations(doc) {
    if (!doc.branches.length) return el("p", "muted", "No message was exchanged.");
    return el(
      "div",
      "branches",
      doc.branches.map((branch, i) => {
        const title = [
          el("b", "", branch.root ? "root conversation" : branch.first || `conversation ${i + 1}`),
          branch.first && branch.last !== branch.first ? el("span", "muted", branch.root ? ` ${branch.first} … ${branch.last}` : ` … ${branch.last}`) : null,
          el("span", "muted", ` ${View.plural(branch.nodes.length, "message")}, ${View.plural(branch.turns, "reply", "replies")} · ${View.tokens(branch.in, branch.out)}`),
        ];
        return View.fold(title, () => el("div", "", branch.nodes.map((n) => View.message(doc, n))), { open: i === 0 || doc.branches.length < 3, kind: "branch" });
      }),
    );
  }

  // --- the side -------------------------------------------------------------------------------------
  const card = (title, ...content) => el("section", "card", el("h2", "", title), content);
  const pair = (name, value, kind = "") => [el("dt", "", name), el("dd", kind, value)];

  function rewards(doc) {
    if (!doc.rewards.length) return null;
    const rows = doc.rewards.map(({ name, score, weight }) => {
      const scored = View.isNumber(score);
      return pair(name, scored ? View.score(score) + (weight !== null && weight !== 1 ? ` × ${View.score(weight)}` : "") : "not scored", scored ? "strong" : "muted");
    });
    return card("Rewards", el("dl", "pairs", rows));
  }

  // Budgets: [field of limits, metric that counts against it, label, formatter]
  const BUDGETS = [
    ["max_turns", "root_turns", "root turns", View.count],
    ["max_sub_calls", "sub_calls", "sub-calls", View.count],
    ["max_root_tokens", "root_completion_tokens", "root tokens", View.short],
    ["max_sub_tokens", "sub_completion_tokens", "sub tokens", View.short],
    ["episode_seconds", "wall_seconds", "time", View.seconds],
  ];

  function limits(doc) {
    const rows = BUDGETS.filter(([field, metric]) => View.isNumber(doc.limits[field]) && View.isNumber(doc.metrics[metric])).map(([field, metric, label, format]) => {
      const used = doc.metrics[metric];
      const most = doc.limits[field];
      const share = most ? Math.min(1, used / most) : 1;
      const fill = el("span", { class: "bar-fill" + (share >= 1 ? " full" : ""), width: share * 100 + "%" });
      return [pair(label, `${format(used)} of ${format(most)}`), el("dd", "wide", el("div", "bar", fill))];
    });
    const stop = doc.row.stop;
    if (!rows.length && !stop) return null;
    return card("Limits", el("dl", "pairs", stop ? pair("ended by", stop.replaceAll("_", " "), "strong") : null, rows));
  }

  function costs(doc) {
    const { row, metrics, timing } = doc;
    const stages = ["boot", "setup", "agent", "finalize", "scoring"].filter((stage) => timing[stage] >= 0.0005);
    const outside = doc.usage_outside.reduce((sum, [into, out]) => sum + into + out, 0);
    return card(
      "Tokens and time",
      el(
        "dl",
        "pairs",
        pair("root", View.tokens(row.root_in, row.root_out)),
        View.isNumber(metrics.root_peak_context_tokens) ? pair("largest root context", View.short(metrics.root_peak_context_tokens)) : null,
        row.sub_in || row.sub_out ? pair("sub-LLMs", View.tokens(row.sub_in, row.sub_out)) : null,
        outside ? pair("judge and others", View.short(outside) + " tok") : null,
        metrics.repl_seconds ? pair("code", View.seconds(metrics.repl_seconds)) : null,
        metrics.repl_wait_seconds ? pair("waiting", View.seconds(metrics.repl_wait_seconds)) : null,
        stages.map((stage) => pair(stage, View.seconds(timing[stage]))),
      ),
    );
  }

  function metrics(doc) {
    const entries = Object.entries(doc.metrics).filter(([name, value]) => !(name.startsWith("stop/") && value === 0));
    if (!entries.length) return null;
    const table = () => el("dl", "pairs", entries.map(([name, value]) => pair(name, View.score(value))));
    return el("section", "card", View.fold(el("h2", "inline", `All metrics (${entries.length})`), table));
  }

  function about(doc) {
    const rows = Object.entries(doc.about).filter(([, value]) => value);
    const started = View.isNumber(doc.timing.start) ? pair("started", new Date(doc.timing.start * 1000).toLocaleString("sv-SE")) : null;
    const address = View.source.lineAddress(doc.row.key);
    return card(
      "Record",
      el("dl", "pairs stacked", started, rows.map(([name, value]) => pair(name, value, "mono small"))),
      address ? el("a", { href: address, download: "" }, "download this trace as JSON") : null,
    );
  }

  // Calls that got no reply are no message, so no conversation shows them.
  function failedCalls(doc) {
    const lost = doc.calls.filter((call) => call.error && call.node === null);
    if (!lost.length) return null;
    const one = (call) => View.problem({ ...call.error, type: (call.request_id ? call.request_id + ": " : "") + (call.error.type || "error") });
    // With no error of the episode's own, the last of them is what ended it.
    if (doc.row.outcome === "overflow" && !doc.errors.length) return [one(lost[lost.length - 1]), more(lost.slice(0, -1), one)];
    return more(lost, one);
  }

  const more = (calls, one) => (calls.length ? View.fold(View.plural(calls.length, "model call") + " without a reply", () => el("div", "", calls.map(one)), { kind: "quiet" }) : null);

  // --- the head -------------------------------------------------------------------------------------
  const REFERENCES = ["answer", "reference", "reference_answer", "target", "gold", "solution", "expected", "text"];

  function answers(doc) {
    const replyText = "node" in doc.reply ? doc.nodes[doc.reply.node].text : doc.reply.text;
    const name = REFERENCES.find((field) => doc.task.fields[field] !== undefined);
    const reference = name === undefined ? null : doc.task.fields[name];
    return el(
      "div",
      "answers",
      el("section", "card", el("h2", "", "Answer"), replyText ? View.longText(replyText, { lines: 10 }) : el("p", "muted", "none")),
      reference === null ? null : el("section", "card", el("h2", "", "Reference ", el("span", "muted", `task field “${name}”`)), View.value(reference, 0, { lines: 10 })),
      typeof reference === "string" && reference.length > 60 && replyText && replyText !== reference ? el("section", "card wide", View.fold(el("h2", "inline", "From the reference to the answer"), () => View.diff(reference, replyText).node)) : null,
    );
  }

  function question(doc) {
    const text = "node" in doc.task.prompt ? doc.nodes[doc.task.prompt.node].text : doc.task.prompt.text;
    return el("section", "card question", el("h2", "", "Task"), text ? View.longText(text, { lines: 10, chars: 2000 }) : el("p", "muted", "no prompt"));
  }

  function record(doc) {
    const part = (title, value) => (Object.keys(value).length ? el("section", "card", el("h2", "", title), View.value(value)) : null);
    return el("div", "", part("Task data", doc.task.fields), part("Task settings", doc.task.settings), part("Agent configuration", doc.config), part("Info", doc.info));
  }

  View.episode = (doc, { onMove }) => {
    const { row } = doc;
    const [mark, label, kind] = View.OUTCOMES[row.outcome] || ["?", row.outcome, ""];
    const hasTree = Boolean(doc.rlm && Object.values(doc.rlm.nodes).some((node) => node.turns.length));
    const tabs = [
      hasTree ? ["turns", "Turns", () => View.tree(doc)] : null,
      ["conversations", `Conversations (${View.count(doc.branches.length)})`, () => conversations(doc)],
      ["record", "Task data and configuration", () => record(doc)],
    ].filter(Boolean);
    const panel = el("div", { class: "panel", id: "panel", role: "tabpanel" });
    const buttons = tabs.map(([id, title, body]) =>
      el("button", { type: "button", role: "tab", id: "tab-" + id, "aria-controls": "panel", onclick: () => choose(id, body) }, title),
    );
    const choose = (id, body) => {
      for (const button of buttons) button.setAttribute("aria-selected", String(button.id === "tab-" + id));
      panel.replaceChildren(body());
    };
    const folds = (open, text, title) => el("button", { type: "button", class: "more", title, onclick: () => View.setFolds(panel, open) }, text);
    const head = el(
      "header",
      "episode-head",
      el(
        "div",
        "crumbs",
        el("button", { type: "button", id: "back", title: "To the list (Esc)", onclick: () => onMove(0) }, "← list"),
        el("button", { type: "button", id: "previous", title: "Previous trace ([)", onclick: () => onMove(-1) }, "previous"),
        el("button", { type: "button", id: "next", title: "Next trace (])", onclick: () => onMove(1) }, "next"),
        el("h1", "", row.suite || doc.task.type, row.task ? el("span", "muted", " " + row.task) : null),
        View.chip(row.mode),
        row.setting ? View.chip(row.setting) : null,
        row.model ? View.chip(row.model) : null,
        row.agent && row.agent !== "agent" ? View.chip(row.agent) : null,
        el("span", "grow"),
        View.chip(`${mark} ${label}`, kind),
        el("span", "reward", el("span", "muted", "reward "), el("b", "", View.isNumber(row.reward) ? View.score(row.reward) : "–")),
      ),
    );
    choose(tabs[0][0], tabs[0][2]);
    return el(
      "section",
      { class: "episode", "data-key": row.key },
      head,
      el(
        "div",
        "columns",
        el(
          "div",
          "left",
          doc.errors.map(View.problem),
          failedCalls(doc),
          doc.rlm?.newer ? el("p", "problem", `info["rlm"] has version ${doc.rlm.newer}, newer than this viewer: some of it may be missing here.`) : null,
          question(doc),
          answers(doc),
          el("div", { class: "tabs", role: "tablist" }, buttons, el("span", "grow"), folds(true, "open all", "Open everything below (e)"), folds(false, "close all", "Close everything below (c)")),
          panel,
        ),
        el("aside", "right", rewards(doc), limits(doc), costs(doc), metrics(doc), about(doc)),
      ),
    );
  };
})();
