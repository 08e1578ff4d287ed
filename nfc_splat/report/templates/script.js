"use strict";
document.documentElement.classList.add("js");

// Sliders: two pictures of the page on top of each other, the left one cut off where the range input stands.
for (const slider of document.querySelectorAll("[data-slider]")) {
  const stage = slider.querySelector(".stage");
  const range = slider.querySelector("input");
  const choices = {};
  for (const select of slider.querySelectorAll("select")) choices[select.dataset.side] = select;
  const move = () => stage.style.setProperty("--at", range.value + "%");
  const show = () => {
    for (const [side, select] of Object.entries(choices)) {
      const source = document.getElementById(select.value);
      const target = stage.querySelector("img." + side);
      if (!source) continue;
      target.src = source.src;
      if (side === "right") {
        target.width = source.width;
        target.height = source.height;
      }
    }
    const named = (side) => choices[side].selectedOptions[0]?.text ?? "nothing";
    range.setAttribute("aria-valuetext", `${Math.round(range.value)} %: ${named("left")} left, ${named("right")} right`);
  };
  if (!choices.left.value || !choices.right.value) {
    slider.remove();
    continue;
  }
  range.addEventListener("input", () => { move(); show(); });
  for (const select of Object.values(choices)) select.addEventListener("change", show);
  move();
  show();
}

// Curves: a read-out of all runs at the step under the pointer, or where the arrow keys went.
const data = JSON.parse(document.getElementById("charts").textContent);
const SVG = "http://www.w3.org/2000/svg";

function position(axis, value) {
  const scale = axis.log ? Math.log : (number) => number;
  const [low, high] = [scale(axis.low), scale(axis.high)];
  return axis.start + (axis.end - axis.start) * (scale(value) - low) / (high - low);
}

function nearest(steps, step) {
  let low = 0;
  let high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  return Math.abs(steps[high] - step) < Math.abs(steps[low] - step) ? high : low;
}

function format(value, digits) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function readout(figure) {
  const chart = data.charts[Number(figure.dataset.chart)];
  const svg = figure.querySelector("svg");
  const cursor = figure.querySelector(".cursor");
  const read = figure.querySelector(".read");
  const rest = [...read.childNodes];
  const last = Math.max(...chart.lines.map((line) => line.steps.at(-1)));
  let step = null;

  function show() {
    cursor.querySelectorAll("circle").forEach((circle) => circle.remove());
    cursor.toggleAttribute("hidden", step === null);
    read.classList.toggle("pointed", step !== null && read.classList.contains("over"));
    if (step === null) {
      read.replaceChildren(...rest);
      return;
    }
    cursor.querySelector("path").setAttribute("transform", `translate(${position(chart.x, step)} 0)`);
    const entries = [element("span", "at", `step ${Math.round(step).toLocaleString("en")}`)];
    for (const line of chart.lines) {
      if (document.querySelector(`.legend input[data-variant="${line.variant}"]`)?.checked === false) continue;
      const index = nearest(line.steps, step);
      const far = Math.abs(line.steps[index] - step) > 0.06 * (chart.x.high - chart.x.low);
      const circle = document.createElementNS(SVG, "circle");
      circle.setAttribute("class", data.colors[line.variant]);
      circle.setAttribute("cx", position(chart.x, line.steps[index]));
      circle.setAttribute("cy", position(chart.y, line.values[index]));
      circle.setAttribute("r", 4);
      cursor.append(circle);
      const entry = element("span", "entry");
      entry.append(element("span", "dot " + data.colors[line.variant]));
      const name = [data.names.length > 1 ? data.names[line.variant] : "", line.label].filter(Boolean).join(" ");
      if (name) entry.append(element("span", "name", name), " ");
      entry.append(element("b", "", format(line.values[index], chart.digits)));
      if (far) entry.append(element("span", "faint", ` at ${line.steps[index].toLocaleString("en")}`));
      entries.push(entry);
    }
    read.replaceChildren(...entries);
  }

  function pointed(event) {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const share = (x - chart.x.start) / (chart.x.end - chart.x.start);
    step = chart.x.low + Math.min(1, Math.max(0, share)) * (chart.x.high - chart.x.low);
    show();
  }

  svg.addEventListener("pointermove", pointed);
  svg.addEventListener("pointerdown", pointed);
  svg.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") { step = null; show(); }
  });
  svg.addEventListener("blur", () => { step = null; show(); });
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -0.02, ArrowRight: 0.02, PageDown: -0.1, PageUp: 0.1 }[event.key];
    const to = { Home: chart.x.low, End: last }[event.key];
    if (by === undefined && to === undefined && event.key !== "Escape") return;
    event.preventDefault();
    if (event.key === "Escape") step = null;
    else step = to ?? Math.min(last, Math.max(chart.x.low, (step ?? last) + by * (last - chart.x.low)));
    show();
  });
  return show;
}

const shows = [...document.querySelectorAll("[data-chart]")].map(readout);
for (const box of document.querySelectorAll(".legend input")) {
  const toggle = () => {
    for (const part of document.querySelectorAll(`.chart [data-variant="${box.dataset.variant}"]`)) {
      part.classList.toggle("off", !box.checked);
    }
    shows.forEach((show) => show());
  };
  box.addEventListener("change", toggle);
  if (!box.checked) toggle();
}

// What is folded up opens when a link leads there.
function unfold() {
  const target = document.getElementById(location.hash.slice(1));
  for (let node = target; node; node = node.parentElement) if (node.matches("details")) node.open = true;
  target?.scrollIntoView();
}
window.addEventListener("hashchange", unfold);
if (location.hash) unfold();
