// A part: its image with heat over it and its regions outlined, and the list of the regions.

import { picture } from "./api.js";
import { h, put, s } from "./dom.js";
import { counted, figure } from "./words.js";

const OPACITY = "makel-opacity";

/** How strongly heat is shown, in all views alike: a property of the sheet, so that no picture need be told. */
function setHeat(value) {
  localStorage.setItem(OPACITY, value);
  document.documentElement.style.setProperty("--heat", value);
  for (const slider of document.querySelectorAll(".slider .heat-slider")) slider.value = value;
}

setHeat(localStorage.getItem(OPACITY) ?? "0.7");

/** A slider for it; `id` tells several apart. */
export function heatSlider(id) {
  const input = h("input", { id, type: "range", class: "heat-slider", min: 0, max: 1, step: 0.05, value: localStorage.getItem(OPACITY) });
  input.addEventListener("input", () => setHeat(input.value));
  return h("div", { class: "slider" }, h("label", { for: id }, "Heat"), input);
}

/** A picture of a part. */
export class Viewer {
  #aborting = null;
  #urls = [];
  #boxes = [];

  constructor(label) {
    this.label = label;
    this.element = h("div", { class: "viewer" });
    this.empty("No picture yet");
  }

  empty(text) {
    this.#forget();
    put(this.element, h("p", { class: "viewer-empty" }, text));
  }

  /** Show a picture once all of it is here; a later call overtakes an earlier one. */
  async show({ view, heatmap, regions = [], words }) {
    this.#aborting?.abort();
    const aborting = new AbortController();
    this.#aborting = aborting;
    try {
      const [below, above] = await Promise.all([picture(view, aborting.signal), heatmap ? picture(heatmap, aborting.signal) : null]);
      if (aborting.signal.aborted) return;
      this.draw({ url: below.url, heatUrl: above?.url, width: below.width, height: below.height, regions, words });
    } catch (problem) {
      if (!aborting.signal.aborted) this.empty(problem.message);
    }
  }

  /** Draw what is here already. */
  draw({ url, heatUrl, width, height, regions = [], words }) {
    this.#forget();
    this.#urls = [url, heatUrl].filter(Boolean);
    const drawing = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${this.label}: ${words}` });
    drawing.append(s("image", { href: url, width, height, preserveAspectRatio: "none" }));
    if (heatUrl) drawing.append(s("image", { href: heatUrl, width, height, preserveAspectRatio: "none", class: "heat" }));
    const letter = Math.max(width, height) / 28;
    this.#boxes = regions.map(({ box_px: [x0, y0, x1, y1] }, index) => {
      const margin = letter / 4;
      const box = { x: x0 - margin, y: y0 - margin, width: x1 - x0 + 2 * margin, height: y1 - y0 + 2 * margin, rx: margin };
      const above = y0 - margin > letter * 1.3;
      const text = { x: Math.max(0, x0 - margin), y: above ? y0 - letter / 2 : y1 + letter * 1.3, "font-size": letter };
      return s("g", { class: "region" }, s("rect", { class: "halo", ...box }), s("rect", { class: "edge", ...box }), s("text", text, String(index + 1)));
    });
    drawing.append(...this.#boxes);
    put(this.element, drawing);
  }

  /** Point at one region; at none with null. */
  point(index) {
    this.#boxes.forEach((box, each) => box.classList.toggle("pointed", each === index));
  }

  #forget() {
    this.#urls.forEach((url) => URL.revokeObjectURL(url));
    this.#urls = [];
    this.#boxes = [];
  }
}

/** What each zone that is judged by itself came to, those that failed first; nothing where there is none. */
export function zoneFacts(zones) {
  if (!zones.length) return [];
  const failed = (zone) => zone.verdict === "reject";
  const facts = [...zones]
    .sort((one, other) => failed(other) - failed(one))
    .map((zone) => [
      h("dt", null, zone.name),
      h("dd", null, `${zone.verdict}: score ${figure(zone.score)} of ${figure(zone.threshold)}, p = ${figure(zone.p_value, 3)}`),
    ]);
  return [h("h3", null, "Zones"), h("dl", { class: "facts zones" }, facts)];
}

/** The zones that failed, in words; nothing where none did. */
export function failedZones(zones) {
  const names = zones.filter((zone) => zone.verdict === "reject").map((zone) => zone.name);
  return names.length ? `${names.length === 1 ? "Zone" : "Zones"} ${names.join(", ")} failed` : "";
}

/** The regions of a decision as a list; looking at one points at it in the picture. */
export function regionList(regions, viewer) {
  if (!regions.length) return h("p", { class: "muted" }, "No region above the threshold.");
  const rows = regions.map((region, index) => {
    const [x0, y0, x1, y1] = region.box_px;
    const area = region.area_mm2 ? `${figure(region.area_mm2, 3)} mm²` : `${region.area_px} px`;
    const point = (on) => () => viewer.point(on ? index : null);
    const where = region.zone ? `${region.zone}, ` : "";
    return h(
      "li",
      null,
      h(
        "button",
        { type: "button", class: "region-row", onmouseenter: point(true), onmouseleave: point(false), onfocus: point(true), onblur: point(false) },
        h("b", null, String(index + 1)),
        h("span", { class: "region-where" }, `${where}${x1 - x0} × ${y1 - y0} px at ${x0}, ${y0}`),
        h("span", null, area),
        h("span", null, `peak ${figure(region.peak, 3)}`),
      ),
    );
  });
  return h("ol", { class: "regions", "aria-label": counted(regions.length, "region") }, rows);
}
