// History: what was decided, part by part, and what people say of it.

import { get, post } from "./api.js";
import { enable, h, isTyping, put, say, shape } from "./dom.js";
import { heatSlider, regionList, Viewer, zoneFacts } from "./part.js";
import { station } from "./station.js";
import { counted, figure, moment, percent, time, zoneOf } from "./words.js";

const PAGE = 50;
const CHOSEN = "makel-history"; // in this tab, so that a look at another view loses neither filters nor page

function remembered() {
  try {
    const { filters = {}, pages = [null] } = JSON.parse(sessionStorage.getItem(CHOSEN)) ?? {};
    return { filters, pages };
  } catch {
    return { filters: {}, pages: [null] };
  }
}

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
      choice("source", "Source", [["", "all"], ["line", "the line"], ["manual", "tried by hand"]]),
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
    const { filters, pages } = remembered();
    this.#pages = pages;
    this.#choices(filters.model);
    for (const [name, value] of Object.entries(filters)) if (this.filters.elements[name]) this.filters.elements[name].value = value;
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
    station.addEventListener("answer", (event) => this.#said(event.detail), { signal });
    station.addEventListener("recent", () => this.#again(), { signal });
    this.#choices();
    this.#load();
    this.go(number);
  }

  /** Another part of the same view. */
  go(number) {
    const before = this.#number;
    this.#number = /^[1-9]\d{0,14}$/.test(number ?? "") ? Number(number) : null;
    this.element.classList.toggle("opened", Boolean(number));
    this.#mark();
    if (this.#number) {
      this.#part(this.#number);
      return;
    }
    const words = number ? `There is no part ${number}: parts are numbered 1, 2, 3…` : "Choose a part to see it.";
    put(this.detail, h("p", { class: "muted invitation" }, words), number ? h("a", { href: "#history" }, "All parts") : null);
    if (before) this.#item(before)?.firstChild.focus({ preventScroll: true }); // where it was opened from
  }

  close() {
    this.#subscriptions.abort();
  }

  #choices(wanted) {
    const select = this.models.querySelector("select");
    const chosen = wanted ?? select.value;
    const names = new Set([...station.models.map((model) => model.name), chosen].filter(Boolean));
    put(select, h("option", { value: "" }, "all"), [...names].map((name) => h("option", { value: name }, name)));
    select.value = chosen;
  }

  #item(number) {
    return [...this.list.children].find((each) => Number(each.dataset.number) === number);
  }

  // Said here, by somebody else, or in another tab.
  #said(decision) {
    const item = this.#item(decision.number);
    if (item) put(item, this.#row(decision));
    this.#mark();
    if (this.#number === decision.number && this.answers) this.#answered(decision);
  }

  // After the station was away: what is shown may have been answered meanwhile.
  async #again() {
    for (const decision of station.recent) if (this.#item(decision.number)) this.#said(decision);
    if (!this.#number) return;
    try {
      this.#said(await get(`/history/${this.#number}`));
    } catch {
      // it says so where it is opened
    }
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
    enable(this.newer, !isFirst || this.#fresh > 0);
    enable(this.older, Boolean(this.more));
  }

  #turn(by) {
    if (by < 0 && this.#pages.length === 1) this.#pages = [null];
    else if (by > 0) this.#pages.push(this.more);
    else this.#pages.pop();
    this.#load();
  }

  async #load() {
    const wanted = Object.fromEntries(new FormData(this.filters));
    sessionStorage.setItem(CHOSEN, JSON.stringify({ filters: wanted, pages: this.#pages }));
    for (const key of ["since", "until"]) if (wanted[key]) wanted[key] = new Date(wanted[key]).toISOString();
    // Filters that hide parts must be seen, not remembered by who set them.
    this.filters.classList.toggle("chosen", Object.values(wanted).some(Boolean));
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
    put(this.words, first ? `No. ${last.number} to ${first.number}, times in ${zoneOf(first.at)}` : "No part is like that.");
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
      h("span", { class: "row-answer" }, said || (decision.source === "manual" ? "by hand" : "")),
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
    this.#answers(number);
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
        fact("time", moment(decision.at)),
        fact("model", `${decision.model} (${decision.model_id.slice(0, 8) || "none answered"})`),
        fact("source", decision.source === "manual" ? "tried by hand: counts for no rate" : decision.source),
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

  #answers(number) {
    const button = (answer, words, key) =>
      h("button", { type: "button", class: `answer ${answer}`, "aria-keyshortcuts": key, onclick: () => this.#answer(number, answer) }, shape(answer === "good" ? "pass" : "reject"), words, h("kbd", { "aria-hidden": "true" }, key));
    this.good = button("good", "This was good", "G");
    this.defect = button("defect", "This was a defect", "D");
    this.back = h("button", { type: "button", class: "quiet", "aria-keyshortcuts": "U", onclick: () => this.#answer(number, null) }, "Take it back", h("kbd", { "aria-hidden": "true" }, "U"));
    this.answers = h("div", { class: "answers", role: "group", "aria-label": "What was it really?" }, this.good, this.defect, this.back);
  }

  #answered({ answer }) {
    this.answer = answer;
    this.good.setAttribute("aria-pressed", answer === "good");
    this.defect.setAttribute("aria-pressed", answer === "defect");
    if (document.activeElement === this.back && !answer) this.good.focus({ preventScroll: true });
    this.back.hidden = !answer;
  }

  async #answer(number, answer) {
    if (answer === this.answer && this.#number === number) return; // it is in the record
    try {
      station.update(await post(`/history/${number}/answer`, { answer }));
      say(answer ? `Recorded: part ${number} was ${answer === "good" ? "good" : "a defect"}.` : `Taken back: nothing is said of part ${number}.`);
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
    const answers = { g: "good", d: "defect", u: null };
    const key = event.key.toLowerCase();
    if (Object.hasOwn(answers, key) && !event.repeat) this.#answer(this.#number, answers[key]);
    if (event.key === "Escape") location.hash = "#history";
  }
}
