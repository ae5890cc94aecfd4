// Line: what passes the camera now.

import { ask } from "./api.js";
import { pValueChart, rateChart } from "./charts.js";
import { h, isTyping, put, say, shape } from "./dom.js";
import { failedZones, heatSlider, regionList, Viewer } from "./part.js";
import { station } from "./station.js";
import { counted, figure, interval, percent, time } from "./words.js";

const WINDOW = 200;
const PICTURE_EVERY_MS = 400; // a person sees no more, and the heat of every part costs the station an inspection
const CHARTS_EVERY_MS = 250;
const STRIP = 6;
const MODEL = "makel-line-model";

export class LineView {
  title = "Line";
  #viewer = new Viewer("Current part");
  #shown = null;
  #paused = false;
  #missed = 0;
  #model = localStorage.getItem(MODEL) ?? "";
  #pictureAt = 0;
  #waiting = null;
  #drawing = null;
  #subscriptions = new AbortController();

  constructor() {
    this.word = h("p", { class: "verdict-word" });
    this.verdict = h("div", { class: "verdict none" });
    this.facts = h("div", { class: "verdict-facts" });
    this.regions = h("div");
    this.rate = h("div", { class: "rate" });
    this.charts = h("div");
    this.strip = h("ol", { class: "strip" });
    this.file = h("input", { type: "file", id: "inspect-file", class: "visually-hidden", accept: "image/*,.tif,.tiff", multiple: true, tabindex: -1, "aria-label": "Images to inspect" });
    this.file.addEventListener("change", () => this.#inspect([...this.file.files]));
    this.pause = h("button", { type: "button", id: "pause", "aria-pressed": "false", onclick: () => this.#toggle() });
    this.choice = h("select", { id: "line-model", onchange: () => this.#choose(this.choice.value) });
    this.choiceLabel = h("label", { for: "line-model", class: "visually-hidden" }, "Model");
    this.element = h(
      "div",
      { class: "line" },
      h("h1", { class: "visually-hidden" }, "Line"),
      h(
        "section",
        { class: "stage", "aria-label": "Current part" },
        this.verdict,
        this.#viewer.element,
        h(
          "div",
          { class: "tools" },
          heatSlider("line-heat"),
          this.choiceLabel,
          this.choice,
          h("span", { class: "spring" }),
          this.pause,
          h("button", { type: "button", class: "primary", onclick: () => this.file.click() }, "Inspect an image…"),
          this.file,
        ),
      ),
      h(
        "aside",
        { class: "side", "aria-label": "How the line runs" },
        h("section", { class: "card" }, h("h2", null, "Rejected"), this.rate),
        h("section", { class: "card" }, h("h2", null, "p-values"), this.charts),
        h("section", { class: "card" }, h("h2", null, "Regions"), this.regions),
        h("section", { class: "card grow" }, h("h2", null, "Last rejects"), this.strip),
      ),
    );
    for (const kind of ["dragover", "drop"]) this.element.addEventListener(kind, (event) => this.#dropped(event));
  }

  open() {
    const { signal } = this.#subscriptions;
    station.addEventListener("decision", (event) => this.#came(event.detail), { signal });
    station.addEventListener("recent", () => this.#begin(), { signal });
    station.addEventListener("models", () => this.#choices(), { signal });
    document.addEventListener("keydown", (event) => this.#key(event), { signal });
    document.addEventListener("visibilitychange", () => this.#picture(), { signal });
    this.#choices();
    this.#pauseWords();
    this.#begin();
  }

  close() {
    this.#subscriptions.abort();
    clearTimeout(this.#waiting);
    clearTimeout(this.#drawing);
  }

  #begin() {
    const last = station.latest(this.#model, 1)[0];
    if (last && !this.#paused) this.#show(last);
    else if (!last) this.#nothing();
    this.#statistics();
  }

  #choices() {
    const names = station.models.map((model) => model.name);
    put(this.choice, h("option", { value: "" }, "All models"), names.map((name) => h("option", { value: name }, name)));
    if (names.length && !names.includes(this.#model)) this.#model = "";
    this.choice.value = this.#model;
    this.choice.hidden = this.choiceLabel.hidden = names.length < 2;
    this.#statistics();
  }

  #choose(name) {
    this.#model = name;
    localStorage.setItem(MODEL, name);
    this.#shown = null;
    this.#begin();
  }

  #came(decision) {
    if (this.#model && decision.model !== this.#model) return;
    if (this.#paused) {
      this.#missed += 1;
      this.#pauseWords();
    } else {
      this.#show(decision);
    }
    this.#drawing ??= setTimeout(() => this.#statistics(), CHARTS_EVERY_MS);
  }

  #toggle() {
    this.#paused = !this.#paused;
    this.#missed = 0;
    this.#pauseWords();
    if (!this.#paused) this.#begin();
  }

  #pauseWords() {
    const newer = this.#missed ? ` – ${counted(this.#missed, "newer part")}` : "";
    put(this.pause, this.#paused ? `Go on${newer}` : "Pause");
    this.pause.setAttribute("aria-pressed", this.#paused);
    this.element.classList.toggle("paused", this.#paused);
  }

  #nothing() {
    this.verdict.className = "verdict none";
    const words = !station.loaded ? "Asking the station…" : station.models.length ? "Waiting for the first part" : "No model yet";
    put(this.verdict, shape("none"), h("p", { class: "verdict-word" }, "–"), h("div", { class: "verdict-facts" }, h("p", null, words)));
    const next = station.models.length ? "Drop an image here, or let the line send one." : "Teach the station a product first: Models.";
    this.#viewer.empty(station.loaded ? next : "");
    put(this.regions, h("p", { class: "muted" }, "–"));
  }

  #show(decision) {
    if (this.#shown?.number === decision.number) return;
    this.#shown = decision;
    this.verdict.className = `verdict ${decision.verdict}`;
    const facts = [h("p", { class: "part-name" }, decision.name || `Part ${decision.number}`)];
    if (decision.source === "manual") facts.push(h("p", { class: "by-hand" }, "Tried by hand: counts for no rate."));
    if (decision.reason) facts.push(h("p", null, `Not judged: ${decision.reason}`));
    else facts.push(h("p", null, `score ${figure(decision.score)} of ${figure(decision.threshold)}, p = ${figure(decision.p_value, 3)}`));
    const failed = failedZones(decision.zones);
    if (failed) facts.push(h("p", null, failed));
    facts.push(h("p", null, `No. ${decision.number}, ${decision.model}, ${time(decision.at)}, ${Math.round(decision.latency_ms)} ms`));
    put(this.verdict, shape(decision.verdict), h("p", { class: "verdict-word" }, decision.verdict.toUpperCase()), h("div", { class: "verdict-facts" }, facts));
    put(this.regions, regionList(decision.regions, this.#viewer));
    this.#picture();
  }

  // The newest picture at a pace that a person can follow; what is overtaken is never asked for.
  #picture() {
    clearTimeout(this.#waiting);
    const pause = Math.max(0, this.#pictureAt + PICTURE_EVERY_MS - Date.now());
    this.#waiting = setTimeout(() => {
      const decision = this.#shown;
      if (!decision?.number || !decision.image_sha256 || document.hidden) return;
      this.#pictureAt = Date.now();
      const path = `/history/${decision.number}`;
      const heatmap = decision.model_id ? `${path}/heat` : null;
      const words = `${decision.name || `part ${decision.number}`}, ${decision.verdict}, ${counted(decision.regions.length, "region")}`;
      this.#viewer.show({ view: `${path}/view`, heatmap, regions: decision.regions, words });
    }, pause);
  }

  #statistics() {
    clearTimeout(this.#drawing);
    this.#drawing = null;
    const decisions = station.running(this.#model, WINDOW);
    const model = station.model(this.#model || (station.models.length === 1 ? station.models[0].name : ""));
    const promised = model?.promised_false_reject ?? null;
    const rejects = decisions.filter((decision) => decision.verdict === "reject").length;
    const [low, high] = interval(rejects, decisions.length);
    const over = promised !== null && decisions.length > 0 && low > promised;
    const rate = decisions.length ? percent(rejects / decisions.length) : "–";
    put(
      this.rate,
      h("p", { class: "big" }, rate),
      h(
        "p",
        { class: "muted" },
        `${rejects} of the last ${counted(decisions.length, "part")}${this.#since(decisions, model)}`,
        h("br"),
        decisions.length ? `${percent(low)} to ${percent(high)} (95 %)` : "",
        promised === null ? "" : h("span", { class: over ? "over" : "within" }, over ? `more than the ${percent(promised)} that good parts explain` : `${percent(promised)} promised for good parts`),
      ),
      decisions.length > 1 ? rateChart(decisions, promised, WINDOW) : "",
    );
    const floor = model?.n_calibrate ? 1 / (model.n_calibrate + 1) : null;
    put(this.charts, pValueChart(decisions.slice(-100), promised, floor));
    const last = station.latest(this.#model, WINDOW).filter((decision) => decision.verdict === "reject" && decision.number).slice(-STRIP).reverse();
    this.#rejects(last);
  }

  #since(decisions, model) {
    const line = station.latest(this.#model, WINDOW).filter((decision) => decision.source !== "manual");
    return model && line.length > decisions.length ? `, since version ${model.active} judges` : "";
  }

  #rejects(last) {
    const kept = new Map([...this.strip.children].map((item) => [item.dataset.number, item]));
    const items = last.map((decision) => {
      const number = String(decision.number);
      if (kept.has(number)) return kept.get(number);
      const name = decision.name || `Part ${number}`;
      const noPicture = (event) => event.target.replaceWith(shape("reject")); // what came was no image, or is gone
      const image = decision.image_sha256 ? h("img", { src: `/history/${number}/view?longest_px=160`, alt: "", loading: "lazy", onerror: noPicture }) : shape("reject");
      const item = h("li", null, h("a", { href: `#history/${number}`, "aria-label": `${name}, reject, ${time(decision.at)}` }, image, h("span", null, name)));
      item.dataset.number = number;
      return item;
    });
    put(this.strip, items.length ? items : h("li", { class: "muted" }, "None among the latest parts."));
  }

  #dropped(event) {
    event.preventDefault();
    if (event.type === "drop") this.#inspect([...event.dataTransfer.files]);
  }

  async #inspect(files) {
    const model = this.#model || (station.models.length === 1 ? station.models[0].name : "");
    if (!model && station.models.length > 1) {
      say("Choose a model first: there are several.", "problem");
      return;
    }
    for (const file of files) {
      try {
        const query = new URLSearchParams({ name: file.name, source: "manual", ...(model ? { model } : {}) });
        await ask(`/inspect?${query}`, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
      } catch (problem) {
        say(`${file.name}: ${problem.message}`, "problem");
      }
    }
    this.file.value = "";
  }

  #key(event) {
    if (isTyping(event) || event.target.matches("button, a")) return;
    if (event.key === "p" || event.key === " ") {
      event.preventDefault();
      this.#toggle();
    }
  }
}
