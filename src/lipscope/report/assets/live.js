"use strict";
// Asks for a new page while runs are being written, and changes only what is different, so that nothing jumps.
(() => {
  const PAUSE = 1500; // milliseconds between two questions
  let token = document.body.dataset.token;
  const say = (text) => { document.getElementById("feed").textContent = text; };
  const sync = (old, fresh) => {
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of [...fresh.attributes]) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  };
  const adopt = (parent, fresh) => {
    parent.replaceChildren(...[...fresh.childNodes].map((node) => document.importNode(node, true)));
    parent.querySelectorAll("[data-figure]").forEach(redraw);
  };
  const redraw = (place) => dispatchEvent(new CustomEvent("lipscope:figure", { detail: place }));
  const alike = (a, b) => a.length === b.length && [...a].every((node, k) => node.nodeName === b[k].nodeName && node.id === b[k].id);
  const merge = (old, fresh) => {
    if (old.nodeType === Node.TEXT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
    } else if (old.nodeType === Node.ELEMENT_NODE && !old.dataset.figure) {
      sync(old, fresh);
      if (!alike(old.childNodes, fresh.childNodes)) return adopt(old, fresh);
      const places = [...old.children].filter((e) => e.dataset.figure);
      const before = places.map((e) => document.getElementById(e.dataset.figure).textContent);
      [...old.childNodes].forEach((node, k) => merge(node, fresh.childNodes[k]));
      places.forEach((e, k) => { if (document.getElementById(e.dataset.figure).textContent !== before[k]) redraw(e); });
    }
  };
  const ask = async () => {
    try {
      const answer = await fetch("feed?token=" + encodeURIComponent(token), { cache: "no-store" });
      if (answer.status === 200) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        token = page.body.dataset.token;
        merge(document.getElementById("content"), page.getElementById("content"));
      }
      if (answer.ok) say("live");
      else say("the server cannot read the runs");
    } catch {
      say("no connection: the last state is shown");
    }
    setTimeout(ask, PAUSE);
  };
  setTimeout(ask, PAUSE);
})();
