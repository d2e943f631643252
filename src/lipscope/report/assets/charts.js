"use strict";
// Draws every figure on the page; figures refer to colours as {"var": name}, which follow the colour scheme.
(() => {
  const root = document.documentElement;
  const read = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const paint = (value) => {
    if (Array.isArray(value)) return value.map(paint);
    if (value === null || typeof value !== "object") return value;
    if (typeof value.var === "string") return read(value.var);
    return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, paint(entry)]));
  };
  const options = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };
  const PAPER = 660; // pixels that fit beside the margins of A4 and letter
  const drawOne = (place, width) => {
    const figure = paint(JSON.parse(document.getElementById(place.dataset.figure).textContent));
    Plotly.react(place, figure.data, { ...figure.layout, width }, options);
  };
  const draw = (width) => document.querySelectorAll("[data-figure]").forEach((place) => drawOne(place, width));
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  addEventListener("beforeprint", () => { root.dataset.print = ""; draw(PAPER); });
  addEventListener("afterprint", () => { delete root.dataset.print; draw(); });
  addEventListener("lipscope:figure", (event) => drawOne(event.detail));
})();
