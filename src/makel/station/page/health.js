// Health: whether the station decides, how fast, and whether the line is still what it was calibrated on.

import { get, post } from "./api.js";
import { blockChart, uniformityChart } from "./charts.js";
import { h, put, say, shape } from "./dom.js";
import { station } from "./station.js";
import { bytes, counted, figure, local, percent, time } from "./words.js";

const EVERY_MS = 5000;

export class HealthView {
  title = "Health";
  #timer = null;
  #isOpen = true;
  #drift = { models: [] };
  #subscriptions = new AbortController();

  constructor() {
    this.cards = Object.fromEntries(["ready", "drift", "latency", "queue", "disk", "record"].map((name) => [name, h("div")]));
    const card = (name, words) => h("section", { class: "card" }, h("h2", null, words), this.cards[name]);
    this.verify = h("button", { type: "button", onclick: () => this.#verify() }, "Verify the record");
    this.drift = h("div", { class: "drifts" });
    this.cards.record.after(this.verify);
    this.element = h(
      "div",
      { class: "health" },
      h("h1", { class: "visually-hidden" }, "Health"),
      card("ready", "Station"),
      card("latency", "Latency"),
      card("queue", "Queues"),
      card("disk", "Pictures and disk"),
      h("section", { class: "card" }, h("h2", null, "Record"), this.cards.record, this.verify),
      h("section", { class: "card wide" }, h("h2", null, "Is the line still what was calibrated?"), this.drift),
    );
  }

  open() {
    station.addEventListener("recent", () => this.#drifts(), { signal: this.#subscriptions.signal });
    this.#look();
  }

  close() {
    this.#isOpen = false;
    this.#subscriptions.abort();
    clearTimeout(this.#timer);
  }

  async #look() {
    try {
      const [overview, drift] = await Promise.all([get("/overview"), get("/drift")]);
      this.#draw(overview);
      this.#drift = drift;
      this.#drifts();
    } catch (problem) {
      put(this.cards.ready, h("p", { class: "problem" }, problem.message));
    }
    if (this.#isOpen) this.#timer = setTimeout(() => this.#look(), EVERY_MS);
  }

  #draw({ obstacles, warnings, latency_ms: latency, lines, refused, pictures, record }) {
    const ready = !obstacles.length;
    put(
      this.cards.ready,
      h("p", { class: `state ${ready ? "good" : "bad"}` }, shape(ready ? "pass" : "reject"), ready ? "Decides" : "Does not decide"),
      h("ul", { class: "plain" }, obstacles.map((text) => h("li", { class: "problem" }, local(text)))),
      h("p", { class: "muted" }, warnings.length ? `${counted(warnings.length, "warning")}, told above.` : "Nothing needs anybody."),
    );
    put(
      this.cards.latency,
      h("p", { class: "big" }, latency.p50 === null ? "–" : `${figure(latency.p50, 3)} ms`),
      h("p", { class: "muted" }, latency.n ? `half of the latest ${counted(latency.n, "part")} or faster; 95 % within ${figure(latency.p95, 3)} ms, 99 % within ${figure(latency.p99, 3)} ms` : "no part yet"),
    );
    put(
      this.cards.queue,
      lines.length ? lines.map((line) => h("div", { class: "meter-row" }, h("span", null, line.name), h("meter", { min: 0, max: line.queue, high: line.queue * 0.8, value: line.depth, "aria-label": `Queue of ${line.name}` }), h("span", null, `${line.depth} of ${line.queue}`))) : h("p", { class: "muted" }, "No model is served."),
      h("p", { class: "muted" }, refused ? `${counted(refused, "image")} refused for want of room since the start` : "No image was refused since the start."),
    );
    const shelves = Object.entries(pictures.shelves);
    const kept = shelves.reduce((sum, [, shelf]) => sum + shelf.size_bytes, 0);
    put(
      this.cards.disk,
      h("div", { class: "meter-row" }, h("span", null, "Pictures"), h("meter", { min: 0, max: pictures.limit_bytes, value: kept, "aria-label": "Pictures kept" }), h("span", null, `${bytes(kept)} of ${bytes(pictures.limit_bytes)}`)),
      h("div", { class: "meter-row" }, h("span", null, "Disk"), h("meter", { min: 0, max: pictures.disk_total_bytes, value: pictures.disk_total_bytes - pictures.disk_free_bytes, high: pictures.disk_total_bytes * 0.9, "aria-label": "Disk used" }), h("span", null, `${bytes(pictures.disk_free_bytes)} free`)),
      h("p", { class: "muted" }, shelves.map(([shelf, { n }]) => `${n} ${shelf}`).join(", ")),
    );
    const { verified } = record;
    put(
      this.cards.record,
      h("p", { class: "big" }, String(record.decisions)),
      h("p", { class: "muted" }, `decisions in ${record.entries} entries${record.waiting ? `; ${record.waiting} wait for the record` : ""}`),
      verified ? h("p", { class: `state ${verified.problem ? "bad" : "good"}` }, shape(verified.problem ? "reject" : "pass"), verified.problem ? `Broken at ${verified.problem}` : `As it was written, up to entry ${verified.entry}`) : h("p", { class: "muted" }, "Not verified since the start."),
      verified ? h("p", { class: "muted" }, `verified ${time(verified.at)}`) : null,
    );
  }

  async #verify() {
    if (this.verify.ariaBusy === "true") return;
    this.verify.ariaBusy = "true"; // not disabled: that would take the focus from it
    try {
      const { problem } = await post("/record/verify");
      say(problem ? `The record is broken at ${problem}` : "The record is as it was written.", problem ? "problem" : "note");
      clearTimeout(this.#timer);
      await this.#look();
    } catch (problem) {
      say(problem.message, "problem");
    }
    this.verify.ariaBusy = "false";
  }

  #drifts() {
    const parts = this.#drift.models.map((state) => {
      const judged = station.running(state.model, 200).filter((decision) => decision.p_value !== null);
      const [low, high] = state.reject_interval_95 ?? [0, 1];
      const tested = state.blocks.length > 0;
      const causes = state.causes.map((cause) => cause.cause).join(" and ");
      const headline = state.changed ? `Changed: ${causes || "scores or rejects"}` : tested ? "As it was calibrated" : "Not tested yet";
      const kind = state.changed ? "reject" : tested ? "pass" : "none";
      return h(
        "article",
        null,
        h("h3", null, state.model),
        h("p", { class: `state ${{ reject: "bad", pass: "good", none: "muted" }[kind]}` }, shape(kind), headline),
        h("p", null, state.words),
        state.since ? h("p", null, h("a", { href: `#history/${state.since}` }, `Part ${state.since}, where it began`)) : null,
        h("p", { class: "muted" }, state.of ? `${state.rejects} of the latest ${state.of} rejected: ${percent(low)} to ${percent(high)} (95 %), ${percent(state.promised)} promised for good parts.` : "No part judged by this version yet."),
        tested ? [h("h4", null, `Every ${counted(state.block, "part")} tested`), blockChart(state.blocks, state.level)] : null,
        judged.length ? [h("h4", null, "p-values of the latest parts"), uniformityChart(judged.map((decision) => decision.p_value))] : null,
        judged.length ? h("p", { class: "muted" }, "Good parts spread evenly over all p-values; defects lie at the left end.") : null,
      );
    });
    put(this.drift, parts.length ? parts : h("p", { class: "muted" }, "No model is served."));
  }
}
