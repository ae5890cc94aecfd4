// Candidates: what people said of parts becomes a version that may judge, once the comparison allows it.

import { get, post } from "./api.js";
import { h, put, say, shape } from "./dom.js";
import { station } from "./station.js";
import { counted, local, percent } from "./words.js";

const BUSY = ["making", "testing"];

export class Candidates extends EventTarget {
  #poll = null;
  #isOpen = true;
  #drawn = null;
  #subscriptions = new AbortController();

  constructor(name) {
    super();
    this.name = name;
    this.path = `/models/${name}/candidates`;
    this.advice = h("div");
    this.last = h("div", { "aria-live": "polite" });
    this.element = h("section", { class: "card" }, h("h2", null, "From what people said"), this.advice, this.last);
    const { signal } = this.#subscriptions;
    for (const kind of ["models", "recent", "answer"]) station.addEventListener(kind, () => this.#look(), { signal });
    station.addEventListener("candidates", (event) => event.detail === this.name && this.#look(), { signal });
    this.#look();
  }

  close() {
    this.#isOpen = false;
    this.#subscriptions.abort();
    clearTimeout(this.#poll);
  }

  async #look() {
    try {
      const { advice, candidates } = await get(this.path);
      const last = candidates[0];
      const isBusy = last && BUSY.includes(last.state);
      const judges = station.model(this.name)?.active;
      const drawn = JSON.stringify([advice, last, judges]);
      if (drawn !== this.#drawn) {
        put(this.advice, this.#advise(advice, isBusy));
        put(this.last, last ? this.#candidate(last, judges) : null);
      }
      this.#drawn = drawn;
      clearTimeout(this.#poll);
      if (this.#isOpen && isBusy) this.#poll = setTimeout(() => this.#look(), 700);
    } catch (problem) {
      this.#drawn = null;
      put(this.advice, h("p", { class: "problem" }, problem.message));
    }
  }

  #advise(advice, isBusy) {
    const button = (kind, words, obstacle) =>
      h("button", { type: "button", class: kind === advice.kind ? "primary" : "", disabled: !station.isEngineer || isBusy || Boolean(obstacle), title: obstacle || null, onclick: () => this.begin(kind) }, words);
    return [
      h("p", null, advice.words),
      h("div", { class: "tools" }, button("recalibrate", "New thresholds", ""), button("refit", "Learn anew", advice.refit_obstacle)),
      advice.refit_obstacle ? h("p", { class: "muted" }, `It cannot be learnt anew: ${advice.refit_obstacle}`) : null,
    ];
  }

  /** Make one: "recalibrate", "refit", or "budget", which names its share of false rejects. */
  async begin(kind, budget) {
    try {
      await post(this.path, budget === undefined ? { kind } : { kind, false_reject: budget });
      this.element.scrollIntoView({ block: "nearest" });
    } catch (problem) {
      say(problem.message, "problem");
    }
    this.#look();
  }

  #candidate(candidate, judges) {
    const what = { recalibrate: "New thresholds", refit: "Learning anew", budget: "Another budget" }[candidate.kind];
    const parts = candidate.kind === "budget" ? `the scores of the version that judges, at ${percent(candidate.false_reject)} false rejects` : `${counted(candidate.n_passed, "part")} that passed, ${counted(candidate.n_said_good, "reject")} called good`;
    const head = {
      making: `${what}: ${candidate.stage}`,
      testing: "Compared with the version that judges",
      ready: "May judge",
      refused: "Must not judge",
      failed: "Could not be made",
      active: candidate.version === judges ? `Judges now, as version ${candidate.version}` : `Was activated as version ${candidate.version}; version ${judges} judges now`,
    }[candidate.state];
    const isPast = candidate.state === "active" && candidate.version !== judges;
    const kind = isPast ? "none" : ({ ready: "pass", active: "pass", refused: "reject", failed: "reject" }[candidate.state] ?? "none");
    const progress = BUSY.includes(candidate.state) ? h("progress", { "aria-label": head, ...(candidate.total > 1 ? { max: candidate.total, value: candidate.done } : {}) }) : null;
    return [
      h("h3", null, `Candidate: ${what.toLowerCase()}`),
      h("p", { class: `state ${{ pass: "good", reject: "bad", none: "muted" }[kind]}` }, shape(kind), head),
      progress,
      candidate.problem ? h("p", { class: "problem" }, local(candidate.problem)) : null,
      h("p", { class: "muted" }, `Made of ${parts}.`),
      candidate.left_out.length ? h("details", null, h("summary", null, `${counted(candidate.left_out.length, "picture")} left out`), h("ul", null, candidate.left_out.map((line) => h("li", null, line)))) : null,
      candidate.regression.promised === undefined ? null : this.#comparison(candidate.regression),
      candidate.state === "ready" ? h("button", { type: "button", class: "primary", disabled: !station.isEngineer, onclick: () => this.#activate(candidate.id) }, "Activate the candidate") : null,
    ];
  }

  #comparison(found) {
    const row = (words, before, after) => h("tr", null, h("th", { scope: "row" }, words), h("td", null, before), h("td", null, after));
    const flips = found.flips.map((flip) =>
      h("li", null, h("a", { href: `#history/${flip.number}` }, flip.name || `Part ${flip.number}`), ` ${flip.before} → ${flip.after}`, flip.answer ? `, was ${flip.answer === "good" ? "good" : "a defect"}` : ""),
    );
    return [
      h(
        "table",
        null,
        h("thead", null, h("tr", null, ["Compared on kept pictures", "Now", "Candidate"].map((word) => h("th", { scope: "col" }, word)))),
        h(
          "tbody",
          null,
          row(`${counted(found.known_good, "part")} called good: pass`, found.good_passed_before, found.good_passed),
          row(`${counted(found.known_defects, "part")} called a defect: reject`, found.defects_rejected_before, found.defects_rejected),
          row("False rejects promised, at most", percent(found.promised_before), percent(found.promised)),
        ),
      ),
      flips.length ? [h("h4", null, "Judged differently"), h("ul", { class: "flips" }, flips)] : null,
      found.warnings.map((text) => h("p", { class: "muted" }, text)),
    ];
  }

  async #activate(id) {
    try {
      const version = await post(`${this.path}/${id}/activate`);
      say(`Version ${version.version} of ${this.name} was activated.`);
      this.dispatchEvent(new Event("activated"));
    } catch (problem) {
      say(problem.message, "problem");
      this.#look();
    }
  }
}
