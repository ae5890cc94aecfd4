// History: what was decided, part by part, and what people say of it.

import { get, post } from "./api.js";
import { h, isTyping, put, say, shape } from "./dom.js";
import { heatSlider, regionList, Viewer, zoneFacts } from "./part.js";
import { station } from "./station.js";
import { counted, figure, percent, time } from "./words.js";

const PAGE = 50;

export class HistoryView {
  title = "History";
  #pages = [null]; // the `before` of each page up to the present one
  #decisions = [];
  #number = null;
  #fresh = 0;
  #subscriptions = new AbortController();

  constructor() {
    const choice = (id, label, options) =>
      h("label", { for: id }, label, h("select", { id, name: id }, options.map(([value, words]) => h("option", { value }, words))));
    this.models = choice("model", "Model", [["", "all"]]);
    this.filters = h(
      "form",
      { class: "filters", "aria-label": "Which parts", onchange: () => this.#first(), onsubmit: (event) => this.#submitted(event) },
      choice("verdict", "Verdict", [["", "all"], ["pass", "pass"], ["reject", "reject"]]),
      choice("answer", "Answer", [["", "all"], ["none", "none yet"], ["good", "was good"], ["defect", "was a defect"]]),
      this.models,
      h("label", { for: "name" }, "Name", h("input", { id: "name", name: "name", type: "search", size: 12, autocomplete: "off" })),
      h("label", { for: "since" }, "From", h("input", { id: "since", name: "since", type: "datetime-local" })),
      h("label", { for: "until" }, "Until", h("input", { id: "until", name: "until", type: "datetime-local" })),
      h("button", { type: "reset", class: "quiet", onclick: () => setTimeout(() => this.#first()) }, "Clear"),
    );
    this.list = h("ol", { class: "rows", id: "decisions", onkeydown: (event) => this.#arrows(event) });
    this.newer = h("button", { type: "button", onclick: () => this.#turn(-1) }, "Newer");
    this.older = h("button", { type: "button", onclick: () => this.#turn(1) }, "Older");
    this.words = h("p", { class: "muted", role: "status" });
    this.detail = h("section", { class: "detail", "aria-label": "One part" });
    this.element = h(
      "div",
      { class: "history" },
      h("h1", { class: "visually-hidden" }, "History"),
      this.filters,
      h("section", { class: "listing", "aria-label": "Decisions" }, this.list, h("div", { class: "paging" }, this.newer, this.words, this.older)),
      this.detail,
    );
  }

  open(number) {
    const { signal } = this.#subscriptions;
    document.addEventListener("keydown", (event) => this.#key(event), { signal });
    station.addEventListener("models", () => this.#choices(), { signal });
    station.addEventListener("decision", () => this.#came(), { signal });
    this.#choices();
    this.#load();
    this.go(number);
  }

  /** Another part of the same view. */
  go(number) {
    this.#number = number ? Number(number) : null;
    this.element.classList.toggle("opened", this.#number !== null);
    this.#mark();
    if (this.#number) this.#part(this.#number);
    else put(this.detail, h("p", { class: "muted invitation" }, "Choose a part to see it."));
  }

  close() {
    this.#subscriptions.abort();
  }

  #choices() {
    const select = this.models.querySelector("select");
    const chosen = select.value;
    put(select, h("option", { value: "" }, "all"), station.models.map((model) => h("option", { value: model.name }, model.name)));
    select.value = chosen;
  }

  #submitted(event) {
    event.preventDefault();
    this.#first();
  }

  #first() {
    this.#pages = [null];
    this.#load();
  }

  // A list that moved by itself could not be read; it says that there is more.
  #came() {
    this.#fresh += 1;
    this.#turns();
  }

  #turns() {
    const isFirst = this.#pages.length === 1;
    put(this.newer, isFirst && this.#fresh ? `${this.#fresh} new` : "Newer");
    this.newer.disabled = isFirst && !this.#fresh;
    this.older.disabled = !this.more;
  }

  #turn(by) {
    if (by < 0 && this.#pages.length === 1) this.#pages = [null];
    else if (by > 0) this.#pages.push(this.more);
    else this.#pages.pop();
    this.#load();
  }

  async #load() {
    const wanted = Object.fromEntries(new FormData(this.filters));
    for (const key of ["since", "until"]) if (wanted[key]) wanted[key] = new Date(wanted[key]).toISOString();
    try {
      const page = await get("/history", { ...wanted, before: this.#pages.at(-1), limit: PAGE });
      this.#decisions = page.decisions;
      this.more = page.before;
      if (this.#pages.length === 1) this.#fresh = 0;
    } catch (problem) {
      say(problem.message, "problem");
      return;
    }
    put(this.list, this.#decisions.map((decision) => this.#row(decision)));
    const [first, last] = [this.#decisions[0], this.#decisions.at(-1)];
    put(this.words, first ? `No. ${last.number} to ${first.number}` : "No part is like that.");
    this.#turns();
    this.#mark();
  }

  #row(decision) {
    const said = { good: "was good", defect: "was a defect" }[decision.answer] ?? "";
    const row = h(
      "a",
      { href: `#history/${decision.number}`, class: "row" },
      shape(decision.verdict),
      h("b", null, decision.verdict),
      h("span", { class: "row-name" }, decision.name || `Part ${decision.number}`),
      h("span", { class: "row-number" }, decision.reason ? "not judged" : `p ${figure(decision.p_value, 2)}`),
      h("span", { class: "row-answer" }, said),
      h("span", { class: "row-time" }, time(decision.at)),
    );
    const item = h("li", null, row);
    item.dataset.number = decision.number;
    return item;
  }

  #mark() {
    for (const item of this.list.children) {
      if (Number(item.dataset.number) === this.#number) item.firstChild.setAttribute("aria-current", "true");
      else item.firstChild.removeAttribute("aria-current");
    }
  }

  async #part(number) {
    let decision;
    try {
      decision = await get(`/history/${number}`);
    } catch (problem) {
      put(this.detail, h("p", { class: "problem" }, problem.message));
      return;
    }
    if (this.#number !== number) return;
    const viewer = new Viewer("This part");
    const other = new Viewer("Nearest good picture");
    const caption = h("figcaption", null, "Nearest good picture");
    const fact = (word, value) => [h("dt", null, word), h("dd", null, value)];
    this.answers = h("div", { class: "answers", role: "group", "aria-label": "What was it really?" });
    put(
      this.detail,
      h(
        "header",
        { class: `verdict small ${decision.verdict}` },
        shape(decision.verdict),
        h("p", { class: "verdict-word" }, decision.verdict.toUpperCase()),
        h("div", { class: "verdict-facts" }, h("h2", { class: "part-name" }, decision.name || `Part ${number}`), h("p", null, decision.reason || `score ${figure(decision.score)} of ${figure(decision.threshold)}, p = ${figure(decision.p_value, 3)}`)),
        h("a", { href: "#history", class: "back" }, "Close"),
      ),
      h("div", { class: "pair" }, h("figure", null, viewer.element, h("figcaption", null, "This part")), h("figure", null, other.element, caption)),
      h("div", { class: "tools" }, heatSlider("history-heat"), h("span", { class: "spring" }), this.answers),
      h("h3", null, "Regions"),
      regionList(decision.regions, viewer),
      zoneFacts(decision.zones),
      h("h3", null, "Record"),
      h(
        "dl",
        { class: "facts" },
        fact("number", String(decision.number)),
        fact("time", decision.at.replace("T", " ").replace(/\.\d+/, "").replace("+00:00", " UTC")),
        fact("model", `${decision.model} (${decision.model_id.slice(0, 8) || "none answered"})`),
        fact("source", decision.source),
        fact("latency", `${figure(decision.latency_ms)} ms`),
        fact("image", h("code", null, decision.image_sha256.slice(0, 16) || "none")),
        fact("entry", h("code", null, decision.hash.slice(0, 16))),
      ),
    );
    this.#answered(decision);
    if (!decision.image_sha256) {
      viewer.empty("No image came.");
    } else {
      const heatmap = decision.model_id ? `/history/${number}/heat` : null;
      viewer.show({ view: `/history/${number}/view`, heatmap, regions: decision.regions, words: `${decision.verdict}, ${counted(decision.regions.length, "region")}` });
    }
    if (decision.model_id && decision.image_sha256) this.#compare(decision, other, caption);
    else other.empty("No model answered: nothing to compare with.");
  }

  async #compare(decision, viewer, caption) {
    try {
      const near = await get(`/history/${decision.number}/nearest`);
      const like = `${percent(near.difference)} different, nearest of ${near.n_compared}`;
      if (near.number) {
        put(caption, "Nearest good picture: ", h("a", { href: `#history/${near.number}` }, `No. ${near.number}`), `, ${like}`);
        await viewer.show({ view: `/history/${near.number}/view`, words: `part ${near.number}` });
      } else {
        put(caption, `Nearest golden image of the model, ${like}`);
        const version = near.version ? `?version=${near.version}` : "";
        await viewer.show({ view: `/models/${decision.model}/golden/${near.golden}${version}`, words: `golden image ${near.golden}` });
      }
    } catch (problem) {
      viewer.empty(problem.message);
    }
  }

  #answered(decision) {
    const button = (answer, words, key) =>
      h("button", { type: "button", class: `answer ${answer}`, "aria-pressed": decision.answer === answer, "aria-keyshortcuts": key, onclick: () => this.#answer(decision.number, answer) }, shape(answer === "good" ? "pass" : "reject"), words, h("kbd", { "aria-hidden": "true" }, key));
    put(this.answers, button("good", "This was good", "G"), button("defect", "This was a defect", "D"));
  }

  async #answer(number, answer) {
    try {
      const decision = await post(`/history/${number}/answer`, { answer });
      station.update(decision);
      if (this.#number === number) this.#answered(decision);
      const item = [...this.list.children].find((each) => Number(each.dataset.number) === number);
      item?.replaceWith(this.#row(decision));
      this.#mark();
      say(`Recorded: part ${number} was ${answer === "good" ? "good" : "a defect"}.`);
    } catch (problem) {
      say(problem.message, "problem");
    }
  }

  #arrows(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const rows = [...this.list.querySelectorAll("a")];
    rows[Math.min(rows.length - 1, Math.max(0, rows.indexOf(document.activeElement) + by))]?.focus();
  }

  #key(event) {
    if (isTyping(event) || this.#number === null) return;
    const answer = { g: "good", d: "defect" }[event.key.toLowerCase()];
    if (answer) this.#answer(this.#number, answer);
    if (event.key === "Escape") location.hash = "#history";
  }
}
