"use strict";
// Python, coloured: one regular expression that is linear in the text, spans of text for what it finds.
(() => {
  const words = (list) => new Set(list.split(" "));
  const KEYWORDS = words(
    "and as assert async await break class continue def del elif else except finally for from global if import in is lambda match nonlocal not or pass raise return try while with yield None True False",
  );
  const BUILTINS = words(
    "abs all any bool bytes chr dict dir enumerate filter float format frozenset getattr hasattr hash int isinstance iter len list map max min next open ord print range repr reversed round set setattr slice sorted str sum super tuple type vars zip Exception ValueError KeyError",
  );
  const SCAFFOLD = words("context context_files answer llm_batch llm_query rlm_batch rlm_query fold");
  const TOKEN = new RegExp(
    [
      "(#[^\\n]*)",
      "([rRbBfFuU]{0,2}(?:\"\"\"[^]*?(?:\"\"\"|$)|'''[^]*?(?:'''|$)|\"(?:\\\\[^]|[^\"\\\\\\n])*\"?|'(?:\\\\[^]|[^'\\\\\\n])*'?))",
      "(\\b\\d[\\w.]*)",
      "([A-Za-z_]\\w*)",
    ].join("|"),
    "g",
  );
  const MOST = 60000; // characters; longer code is shown plain

  View.python = (code) => {
    const out = document.createDocumentFragment();
    if (code.length > MOST) {
      out.append(code);
      return out;
    }
    let end = 0;
    for (const match of code.matchAll(TOKEN)) {
      const [text, comment, string, number, name] = match;
      const kind = comment
        ? "comment"
        : string
          ? "string"
          : number
            ? "number"
            : SCAFFOLD.has(name)
              ? "scaffold"
              : KEYWORDS.has(name)
                ? "keyword"
                : BUILTINS.has(name)
                  ? "builtin"
                  : code[match.index + text.length] === "("
                    ? "call"
                    : "";
      if (!kind) continue;
      out.append(code.slice(end, match.index), View.el("span", "py-" + kind, text));
      end = match.index + text.length;
    }
    out.append(code.slice(end));
    return out;
  };
})();
