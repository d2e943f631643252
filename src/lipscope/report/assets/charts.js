"use strict";
// Draws every figure on the page; figures refer to colours as {"var": name}, which follow the colour scheme, or as
// {"var": name, "to": other, "share": s}, s of the way from one to the other.
(() => {
  const root = document.documentElement;
  const read = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const mix = (from, to, share) => {
    const [a, b] = [from, to].map((name) => read(name).match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16)));
    return `rgb(${a.map((part, i) => Math.round(part + share * (b[i] - part))).join(",")})`;
  };
  const paint = (value) => {
    if (Array.isArray(value)) return value.map(paint);
    if (value === null || typeof value !== "object") return value;
    if (typeof value.var === "string") return value.to ? mix(value.var, value.to, value.share) : read(value.var);
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
