"use strict";
// An RLM as a tree: turns with their code, output and answer; batches of sub-calls under the turn that made
// them; a child RLM is a call that opens into a tree of its own.
(() => {
  const CALLS_AT_ONCE = 50;
  const { el } = View;

  View.tree = (doc) => rlm(doc, "", []);

  function rlm(doc, path, above) {
    const node = doc.rlm.nodes[path];
    if (!node) return el("p", "muted", "Nothing was recorded of this RLM.");
    if (above.includes(path)) return el("p", "bad", "This RLM is recorded as its own child.");
    const longest = Math.max(...node.turns.map((turn) => spent(doc, turn).total), 0);
    const box = el("div", { class: "tree depth-" + Math.min(node.depth, 4), "data-path": path });
    if (node.turns.length > 1) box.append(timeline(doc, node, box));
    let answer = { content: "", ready: false };
    for (const turn of node.turns) {
      box.append(turnCard(doc, turn, answer, longest, [...above, path]));
      answer = turn.answer || answer;
    }
    if (!node.turns.length) box.append(el("p", "muted", "It ended before its first turn."));
    if (node.stop_reason) box.append(el("p", "stop", "ended: ", View.chip(node.stop_reason.replaceAll("_", " "), node.stop_reason === "answer_ready" ? "good" : "warn")));
    return box;
  }

  // --- time -----------------------------------------------------------------------------------------
  const KINDS = [
    ["model", "the model's reply"],
    ["code", "code"],
    ["wait", "waiting for sub-LLMs and tools"],
    ["other", "tools of the root, and the rest"],
  ];

  function spent(doc, turn) {
    const sum = (name) => turn.blocks.reduce((total, block) => total + (block[name] || 0), 0);
    const call = turn.call === null ? null : doc.calls[turn.call];
    const code = sum("seconds");
    const wait = sum("wait");
    const model = turn.seconds ?? call?.seconds ?? 0; // with its retries, where the harness says
    const rest = (turn.gap || 0) - code - wait;
    const other = rest > 0.1 * (model + code + wait) ? rest : 0; // less is the harness's own breath
    return { model, code, wait, other, total: model + code + wait + other };
  }

  function bars(time, scale) {
    const box = el("span", "bars");
    for (const [kind, label] of KINDS) {
      if (time[kind] > 0) box.append(el("span", { class: "seg " + kind, width: (100 * time[kind]) / scale + "%", title: `${label}: ${View.seconds(time[kind])}` }));
    }
    return box;
  }

  function timeline(doc, node, box) {
    const times = node.turns.map((turn) => spent(doc, turn));
    const total = times.reduce((sum, time) => sum + time.total, 0);
    if (!total) return el("div");
    const strip = el("div", "strip");
    times.forEach((time, i) => {
      const turn = node.turns[i];
      const jump = () => box.querySelectorAll(":scope > .turn")[i].scrollIntoView({ block: "start", behavior: "smooth" });
      const part = el("button", { class: "slot", type: "button", width: (100 * time.total) / total + "%", title: `turn ${turn.turn}: ${View.seconds(time.total)}`, "aria-label": `go to turn ${turn.turn}`, onclick: jump }, bars(time, time.total || 1));
      strip.append(part);
    });
    const legend = KINDS.map(([kind, label]) => {
      const seconds = times.reduce((sum, time) => sum + time[kind], 0);
      if (!seconds) return null;
      return el("span", "key", el("span", "seg " + kind), `${label} ${View.seconds(seconds)}`);
    });
    return el("div", "timeline", strip, el("div", "legend", legend));
  }

  // --- a turn ---------------------------------------------------------------------------------------
  function turnCard(doc, turn, answerBefore, longest, above) {
    const call = turn.call === null ? null : doc.calls[turn.call];
    const time = spent(doc, turn);
    const calls = turn.batches.reduce((sum, batch) => sum + batch.calls.length, 0);
    const errors = turn.blocks.filter((block) => block.error);
    const message = turn.node === null ? null : doc.nodes[turn.node];
    return el(
      "article",
      { class: "turn", tabindex: "-1", "data-turn": turn.turn },
      el(
        "header",
        "",
        el("h3", "", "Turn " + (turn.turn ?? "?")),
        call ? el("span", { class: "small muted", title: "tokens of the context → of the reply" }, View.tokens(call.in, call.out)) : null,
        call?.finish === "length" ? View.chip("cut at the token limit", "warn") : null,
        calls ? View.chip(View.plural(calls, "sub-call")) : null,
        [...new Set(errors.map((block) => block.error))].map((name) => View.chip(name, "bad")),
        turn.answer ? View.chip(turn.answer.ready ? "answer ready" : "answer changed", turn.answer.ready ? "good" : "") : null,
        message?.advantage !== undefined && message.advantage !== null ? View.chip("advantage " + View.score(message.advantage)) : null,
        el("span", "grow"),
        longest ? el("span", "bar-box", bars(time, longest)) : null,
        el("span", "small muted time", View.seconds(time.total)),
      ),
      call?.error ? View.problem(call.error) : null,
      received(doc, turn),
      reply(message, turn),
      turn.batches.map((batch) => batchFold(doc, batch, above)),
      turn.answer ? answerFold(answerBefore, turn.answer) : null,
      turn.observation ? observation(doc, turn.observation) : null,
    );
  }

  // The prompt before the first turn, and whatever else came that is not the observation of the turn before.
  const received = (doc, turn) => turn.received.map((n) => View.messageFold(doc, n));

  // Prose and code in the order of the reply, each block of code followed by what it printed.
  function reply(message, turn) {
    const left = [...turn.blocks];
    const parts = [];
    if (message?.reasoning) parts.push(View.fold(["reasoning ", el("span", "muted", View.plural(message.reasoning.length, "character"))], () => View.longText(message.reasoning), { kind: "quiet" }));
    for (const part of message ? View.segments(message.text) : []) {
      if (!part.code) {
        parts.push(el("div", "prose", View.longText(part.text)));
        continue;
      }
      const at = left.findIndex((block) => block.code.trim() === part.text.trim());
      parts.push(at < 0 ? cell({ code: part.text }, "not run") : cell(left.splice(at, 1)[0]));
    }
    parts.push(...left.map((block) => cell(block)));
    const shown = new Set(turn.blocks.map((block) => block.code.trim()));
    for (const use of message?.tool_calls || []) if (![...shown].some((code) => code && carries(use, code))) parts.push(View.toolCall(use));
    if (!parts.length) parts.push(el("p", "muted", message ? "An empty reply." : "The reply is not in the trace."));
    return el("div", "reply", parts);
  }

  // Whether a tool call is the one whose code a block already shows.
  function carries(use, code) {
    try {
      return Object.values(JSON.parse(use.arguments)).some((value) => typeof value === "string" && value.trim() === code);
    } catch {
      return false;
    }
  }

  function cell(block, note = "") {
    const flags = [
      block.timed_out ? View.chip("timed out", "bad") : null,
      block.restarted ? View.chip("REPL restarted", "bad") : null,
      block.lost?.length ? View.chip("lost: " + block.lost.join(", "), "warn") : null,
      block.restored?.length ? View.chip("restored: " + block.restored.join(", "), "warn") : null,
      block.truncated ? View.chip(View.plural(block.truncated, "character") + " not shown to the model", "warn") : null,
    ];
    const time = View.isNumber(block.seconds) ? View.seconds(block.seconds) + (block.wait ? " + " + View.seconds(block.wait) + " waiting" : "") : note;
    return el(
      "div",
      "repl" + (block.error ? " failed" : ""),
      View.longText(block.code, { kind: "python", lines: 60, chars: 6000 }),
      el("div", "repl-bar", el("span", "", block.error ? "✕ " + block.error : block.output ? "output" : note ? "" : "no output"), flags, el("span", "grow"), el("span", "muted", time)),
      block.output ? View.longText(block.output, { kind: "output" }) : null,
    );
  }

  function answerFold(before, after) {
    const change = View.diff(before.content, after.content);
    const title = [
      el("b", "", "answer"),
      ` ${View.plural(after.content.length, "character")} `,
      change.added ? el("span", "come", `+${change.added} `) : null,
      change.removed ? el("span", "gone", `−${change.removed} `) : null,
      !change.added && !change.removed ? el("span", "muted", "content unchanged ") : null,
      after.ready !== before.ready ? View.chip(after.ready ? "ready" : "no longer ready", after.ready ? "good" : "warn") : null,
    ];
    return View.fold(title, () => el("div", "", change.node, after.content.length > 2000 ? View.fold("whole answer", () => View.longText(after.content)) : null), {
      open: change.added + change.removed <= 30,
      kind: "answer",
    });
  }

  function observation(doc, where) {
    const text = "node" in where ? doc.nodes[where.node].text : where.text;
    return View.fold(["observation sent to the model ", el("span", "muted", View.plural(text.length, "character"))], () => View.longText(text, { kind: "output" }), { kind: "quiet" });
  }

  // --- sub-calls ------------------------------------------------------------------------------------
  function batchFold(doc, batch, above) {
    const calls = batch.calls.map((id) => doc.rlm.calls[id]);
    const sum = (name) => calls.reduce((total, call) => total + call[name], 0);
    const failed = calls.filter((call) => call.error).length;
    const name = batch.name || (calls.some((call) => call.kind === "rlm") ? "rlm_batch" : "llm_batch");
    const title = [
      el("b", "mono", name),
      ` ${View.plural(batch.size, "call")} `,
      el("span", "muted", `${View.tokens(sum("in"), sum("out"))} · ${View.seconds(batch.seconds)} `),
      batch.size > calls.length ? View.chip(View.count(batch.size - calls.length) + " refused", "warn") : null,
      failed ? View.chip(View.count(failed) + " failed", "bad") : null,
    ];
    return View.fold(title, () => callList(doc, calls, above), { kind: "batch", open: calls.length === 1 && calls[0].kind === "rlm" });
  }

  function callList(doc, calls, above) {
    const longest = calls.reduce((most, call) => Math.max(most, call.seconds || 0), 0.001);
    const shared = sharedStart(calls.map((call) => promptOf(doc, call)).filter(Boolean));
    const box = el("div", "calls");
    const more = el("button", { class: "more", type: "button" });
    let shown = 0;
    const add = () => {
      const next = calls.slice(shown, shown + (shown ? 4 : 1) * CALLS_AT_ONCE);
      more.before(...next.map((call) => callFold(doc, call, longest, shared, above)));
      shown += next.length;
      more.hidden = shown >= calls.length;
      more.textContent = `show ${View.plural(calls.length - shown, "more call")}`;
    };
    more.addEventListener("click", add);
    box.append(more);
    add();
    return box;
  }

  const promptOf = (doc, call) => call.messages.map((n) => doc.nodes[n]).find((message) => message.role === "user")?.text || "";

  // How many characters all prompts of a batch begin with, up to a word: what follows tells them apart.
  function sharedStart(prompts) {
    if (prompts.length < 2) return 0;
    let length = 20000;
    for (const prompt of prompts) {
      let i = 0;
      while (i < length && i < prompt.length && prompt[i] === prompts[0][i]) i++;
      length = i;
    }
    return Math.max(0, prompts[0].slice(0, length).search(/\S*$/));
  }

  function callFold(doc, call, longest, shared, above) {
    const messages = call.messages.map((n) => doc.nodes[n]);
    const prompt = promptOf(doc, call);
    const own = shared > 24 && prompt.length > shared ? "… " + View.firstLine(prompt.slice(shared), 120) : View.firstLine(prompt, 120);
    const last = messages[messages.length - 1];
    const title = [
      el("span", "call-id mono", call.id),
      el("span", "call-text", own),
      el("span", "call-text reply-text", call.error ? el("span", "bad", call.error) : last?.sampled ? "→ " + View.firstLine(last.text, 120) : ""),
      el("span", "call-numbers muted", call.tool_calls ? View.plural(call.tool_calls, "tool call") + " · " : "", View.tokens(call.in, call.out)),
      el("span", "bar-box", el("span", "bars", el("span", { class: "seg " + (call.error ? "failed" : "wait"), width: (100 * (call.seconds || 0)) / longest + "%" }))),
      el("span", "call-numbers muted time", View.seconds(call.seconds)),
    ];
    const body = () =>
      el(
        "div",
        "call-body",
        call.error ? View.problem({ type: "this call failed", message: call.error }) : null,
        call.child !== undefined ? rlm(doc, call.child, above) : null,
        call.child === undefined ? call.messages.map((n) => View.message(doc, n)) : null,
        !messages.length && call.child === undefined ? el("p", "muted", "No message of this call reached the trace.") : null,
      );
    return View.fold(title, body, { kind: "call" });
  }
})();
