// Hover, touch and arrow keys: a cursor at the nearest step, and every series' value there.
const tip = document.getElementById("tip");
const node = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
for (const figure of document.querySelectorAll("[data-chart]")) {
  const svg = figure.querySelector("svg"), cursor = svg.querySelector(".cursor");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  let at = data.x.length - 1;
  const hide = () => { cursor.replaceChildren(); tip.hidden = true; };
  const show = (index) => {
    at = Math.max(0, Math.min(data.x.length - 1, index));
    const x = data.x[at], here = data.series.filter((s) => s.y[at] !== undefined && s.y[at] !== null);
    cursor.replaceChildren(node("line", { x1: x, x2: x, y1: 12, y2: height - 22 }));
    tip.replaceChildren(document.createTextNode(`${data.axis} ${data.step[at]}`));
    for (const s of here) {
      cursor.append(node("circle", { cx: x, cy: s.y[at], r: 3.6, style: `fill:${s.colour}` }));
      const row = document.createElement("div"), swatch = document.createElement("i"), value = document.createElement("b");
      swatch.style.background = s.colour;
      value.textContent = s.text[at];
      row.append(swatch, s.label, value);
      tip.append(row);
    }
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), left = box.left + (x / width) * box.width;
    const before = left + 14 + tip.offsetWidth > innerWidth;
    tip.style.left = `${Math.max(4, before ? left - 14 - tip.offsetWidth : left + 14)}px`;
    tip.style.top = `${Math.max(4, Math.min(box.top + 8, innerHeight - tip.offsetHeight - 4))}px`;
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * width;
    let nearest = 0;
    for (let i = 1; i < data.x.length; i++) if (Math.abs(data.x[i] - x) < Math.abs(data.x[nearest] - x)) nearest = i;
    show(nearest);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: data.x.length - 1 };
    if (event.key in moves) { event.preventDefault(); show(moves[event.key]); }
  });
}
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
