"use strict";
// Where rows and traces come from: the server, or this very file.
(() => {
  const server = {
    live: true,
    async index(generation, from) {
      return get(`/api/index?generation=${generation}&from=${from}`);
    },
    async trace(key) {
      return get("/api/trace/" + encodeURIComponent(key));
    },
    lineAddress: (key) => "/api/line/" + encodeURIComponent(key),
  };

  async function get(address) {
    let response;
    try {
      response = await fetch(address, { credentials: "omit" });
    } catch {
      throw new Error("The viewer's server does not answer. Is rlm-view still running?");
    }
    const body = await response.json();
    if (!response.ok) throw new Error(body.error || "The server answered " + response.status);
    return body;
  }

  const file = {
    live: false,
    async index() {
      return unpack("index");
    },
    async trace(key) {
      return unpack("trace-" + key);
    },
    lineAddress: () => null,
  };

  async function unpack(name) {
    const element = document.getElementById(name);
    if (!element) throw new Error("This file does not hold that trace.");
    if (typeof DecompressionStream === "undefined")
      throw new Error("This browser is too old to unpack the file: use one of 2023 or later.");
    const packed = atob(element.textContent.trim());
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  View.source = document.getElementById("index") ? file : server;
})();
