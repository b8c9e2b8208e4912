// What the page is drawn with: text, numbers for people, and plots of what the agent has counted.
"use strict";

// Two minutes of samples.
const SAMPLES = 60;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// ---- Numbers for people ----

function count(n) {
  return Math.round(n).toLocaleString("en");
}

function rate(n) {
  if (n === null) return "–";
  return n > 0 && n < 10 ? n.toFixed(1) : count(n);
}

function bytes(n) {
  if (n === null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1023.5 && unit < units.length - 1) { n /= 1024; unit += 1; }
  return (unit === 0 || n >= 99.95 ? Math.round(n) : n.toFixed(1)) + " " + units[unit];
}

function time(seconds) {
  let left = Math.floor(seconds);
  const parts = [];
  for (const [name, length] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const n = Math.floor(left / length);
    left %= length;
    if (n > 0) parts.push(n + " " + name);
  }
  return parts.slice(0, 2).join(" ") || "0 s";
}

// ---- Plots ----

// A counter's rate, sample by sample. An agent that was started again counts from nothing, and a Service that goes takes
// what it had along: neither is negative traffic.
class Rates {
  constructor() {
    this.values = [];
    this.last = null;
  }
  add(value, at) {
    const last = this.last;
    this.last = { value, at };
    if (last === null || at <= last.at) return;
    this.push(Math.max(0, value - last.value) / ((at - last.at) / 1000));
  }
  push(value) {
    this.values.push(value);
    if (this.values.length > SAMPLES) this.values.shift();
  }
  now() {
    return this.values.length ? this.values[this.values.length - 1] : null;
  }
  peak() {
    return this.values.length ? Math.max(...this.values) : null;
  }
}

class Plot {
  // `least` is what the top of the plot stands for at the least: little is not to look like much.
  constructor(name, least = 1) {
    this.least = least;
    const part = (tag, className) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      element.setAttribute("class", className);
      return element;
    };
    this.name = name;
    this.svg = part("svg", "line");
    this.svg.setAttribute("viewBox", "0 0 100 30");
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.floor = part("line", "floor");
    for (const [key, value] of [["x1", 0], ["x2", 100], ["y1", 29.5], ["y2", 29.5]]) this.floor.setAttribute(key, value);
    this.area = part("path", "area");
    this.stroke = part("path", "stroke");
    this.svg.append(this.floor, this.area, this.stroke);
  }
  draw(values, said) {
    const peak = Math.max(0, ...values);
    const top = Math.max(this.least, peak);
    const x = (n) => 100 - ((values.length - 1 - n) * 100) / (SAMPLES - 1);
    const points = values.map((value, n) => x(n).toFixed(2) + " " + (29.5 - (value / top) * 28).toFixed(2));
    const line = points.length ? "M" + points.join("L") : "";
    this.stroke.setAttribute("d", points.length > 1 && peak > 0 ? line : "");
    this.area.setAttribute("d", points.length > 1 ? line + "L100 29.5L" + x(0).toFixed(2) + " 29.5Z" : "");
    this.svg.setAttribute("aria-label", this.name + ": " + said);
  }
}

// A plot of the whole agent.
class Tile {
  constructor(name, className, say, least) {
    this.say = say;
    this.rates = new Rates();
    this.plot = new Plot(name, least);
    this.element = make("div", "plot " + className);
    const line = make("p");
    line.append(make("span", "name", name), (this.peak = make("span", "peak")));
    this.element.append(line, (this.now = make("p", "now")), this.plot.svg);
  }
  draw() {
    const { rates } = this;
    const now = this.say(rates.now());
    setText(this.now, now);
    setText(this.peak, rates.values.length ? "peak " + this.say(rates.peak()) : "");
    this.element.classList.toggle("some", rates.now() > 0);
    this.plot.draw(rates.values, "now " + now + ", at the most " + this.say(rates.peak()));
  }
}
