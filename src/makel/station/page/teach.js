// Good images in, a new version of a model out: choosing them, sending them, watching the fit.

import { get, remove, upload } from "./api.js";
import { enable, h, put, say } from "./dom.js";
import { station } from "./station.js";
import { counted, duration, local, percent } from "./words.js";
import { pack } from "./zip.js";

const ENDINGS = "jpg jpeg jpe jfif png bmp dib tif tiff webp pnm pgm ppm jp2 j2k".split(" "); // as makel.images has them
const IMAGE = new RegExp(`\\.(${ENDINGS.join("|")})$`, "i");
// Folders that say what the images are, not of what: nothing is called by them.
const PLAIN = /^(good|ok|io|gut|normal|pass|train|test|images?|imgs?|pictures?|photos?|bilder|fotos?|data|upload|new)$/i;
const STAGES = [
  ["data", "Read the images"],
  ["backbone", "Load the backbone"],
  ["features", "Look at them"],
  ["training", "Learn"],
  ["export", "Write the model"],
  ["calibration", "Calibrate on held-out images"],
  ["gate", "Check what was written"],
  ["take in", "Take it in"],
];
const ASIDE = { start: "data", "cross-calibration": "calibration", latency: "gate" };

export class Teach extends EventTarget {
  #entries = [];
  #zip = null;
  #poll = null;
  #seen = null;
  #isOpen = false;
  #given = "";
  #isSending = false;

  constructor() {
    super();
    this.folder = this.#input("teach-folder", { webkitdirectory: true });
    this.files = this.#input("teach-files", { multiple: true, accept: ["zip", ...ENDINGS].map((ending) => `.${ending}`).join(",") });
    this.chosen = h("p", { class: "chosen", role: "status" }, "A folder or a zip of good images, 40 or more.");
    this.drop = h(
      "div",
      { class: "drop" },
      h("p", null, h("strong", null, "Drop good images here")),
      this.chosen,
      h("div", { class: "buttons" }, h("button", { type: "button", onclick: () => this.folder.click() }, "Choose a folder…"), h("button", { type: "button", onclick: () => this.files.click() }, "Choose files or a zip…")),
      this.folder,
      this.files,
    );
    for (const kind of ["dragover", "dragleave", "drop"]) this.drop.addEventListener(kind, (event) => this.#dropped(event));
    this.name = h("input", { id: "teach-name", name: "name", required: true, pattern: "[A-Za-z0-9_][A-Za-z0-9_\\-]{0,63}", title: "letters, digits, - and _", autocomplete: "off", list: "teach-names" });
    this.names = h("datalist", { id: "teach-names" });
    const sizes = ["", 64, 128, 192, 256, 320, 384, 512];
    this.form = h(
      "form",
      { class: "teach", onsubmit: (event) => this.#submit(event), oninput: () => this.#promise() },
      this.drop,
      h("label", { for: "teach-name" }, "Name of the product", this.name, this.names),
      h(
        "details",
        null,
        h("summary", null, "Settings"),
        h("label", { for: "teach-reject" }, "Good parts that may be rejected, %", h("input", { id: "teach-reject", name: "false_reject", type: "number", min: 0.1, max: 50, step: 0.1, value: 1 })),
        h("label", { for: "teach-size" }, "Size the model sees", h("select", { id: "teach-size", name: "size" }, sizes.map((size) => h("option", { value: size }, size ? `${size} px` : "the preset's")))),
        h("label", { for: "teach-epochs" }, "Passes over the images", h("input", { id: "teach-epochs", name: "epochs", type: "number", min: 1, max: 10000, placeholder: "the preset's" })),
        h("label", { for: "teach-preset" }, "Preset", h("select", { id: "teach-preset", name: "preset" }, h("option", { value: "fast" }, "fast"), h("option", { value: "paper" }, "paper, much slower"))),
        h("label", { for: "teach-calibrate" }, "Thresholds from", h("select", { id: "teach-calibrate", name: "calibrate" }, h("option", { value: "holdout" }, "images held out"), h("option", { value: "cross" }, "all images, cross-fitted: for small sets"))),
      ),
      (this.hint = h("p", { class: "muted", role: "status" })),
      (this.button = h("button", { type: "submit", class: "primary", disabled: true }, "Learn from these images")),
    );
    this.job = h("div", { class: "job", "aria-live": "polite" });
    this.element = h("section", { class: "card teaching" }, h("h2", null, "Teach a product"), this.form, this.job);
  }

  open() {
    this.#isOpen = true;
    this.#look();
  }

  close() {
    this.#isOpen = false;
    clearTimeout(this.#poll);
  }

  /** Names that are known, to add a version to. */
  known(names) {
    put(this.names, names.map((name) => h("option", { value: name })));
  }

  #input(id, properties) {
    const input = h("input", { id, type: "file", class: "visually-hidden", tabindex: -1, "aria-label": "Good images", ...properties });
    input.addEventListener("change", () => {
      this.#take([...input.files].map((file) => ({ name: file.webkitRelativePath || file.name, file })));
      input.value = ""; // so that the same choice can be made again
    });
    return input;
  }

  async #dropped(event) {
    event.preventDefault();
    this.drop.classList.toggle("over", event.type === "dragover");
    if (event.type !== "drop") return;
    // Taken at once: after the first wait the browser forgets what was dropped.
    const roots = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    this.#take((await Promise.all(roots.map((root) => walk(root, "")))).flat());
  }

  #take(entries) {
    const zip = entries.length === 1 && /\.zip$/i.test(entries[0].name) ? entries[0].file : null;
    this.#zip = zip;
    this.#entries = zip ? [] : entries.filter(({ name }) => IMAGE.test(name) && !/(^|\/)\./.test(name));
    const left = zip ? 0 : entries.length - this.#entries.length;
    const size = this.#entries.reduce((sum, { file }) => sum + file.size, zip?.size ?? 0);
    if (zip) put(this.chosen, `${zip.name}, ${(size / 1e6).toFixed(1)} MB`);
    else if (this.#entries.length) put(this.chosen, `${counted(this.#entries.length, "image")}, ${(size / 1e6).toFixed(1)} MB${left ? `; ${counted(left, "other file")} left out` : ""}`);
    else put(this.chosen, "No image among these: PNG, JPEG, TIFF, BMP, WebP, PNM and JPEG 2000 are known.");
    const above = zip ? [zip.name.replace(/\.zip$/i, "")] : (entries[0]?.name.split("/").slice(0, -1) ?? []);
    const from = above.findLast((folder) => !PLAIN.test(folder)) ?? "";
    if (this.name.value === this.#given) this.name.value = this.#given = from.replace(/[^A-Za-z0-9_-]+/g, "_").replace(/^-+/, "").slice(0, 64);
    this.#promise();
  }

  #promise() {
    const isReady = Boolean(this.#zip || this.#entries.length) && station.isEngineer && !this.obstacle && !this.#isSending && this.#seen?.state !== "fitting";
    enable(this.button, isReady);
    const wanted = Number(this.form.elements.false_reject.value) / 100;
    const held = this.form.elements.calibrate.value === "cross" ? this.#entries.length : Math.round(this.#entries.length / 5);
    const best = 1 / (held + 1);
    const short = this.#entries.length > 0 && best > wanted;
    put(this.hint, this.obstacle || (short ? `${held} held-out images can promise ${percent(best)} at best: ${percent(wanted)} takes about ${Math.ceil(5 / wanted) - 5} images.` : ""));
  }

  async #submit(event) {
    event.preventDefault();
    const settings = Object.fromEntries(new FormData(this.form));
    settings.false_reject = Number(settings.false_reject) / 100;
    const query = new URLSearchParams(Object.entries(settings).filter(([, value]) => value !== "" && !(value instanceof File)));
    this.#isSending = true;
    this.#promise();
    try {
      const body = this.#zip ?? (await pack(this.#entries, (share) => this.#sending("Packing", share)));
      const job = await upload(`/jobs?${query}`, body, "application/zip", (share) => this.#sending("Sending", share));
      this.#draw(job);
      this.#again(300);
    } catch (problem) {
      put(this.job, h("p", { class: "problem" }, problem.message));
      say(problem.message, "problem");
    }
    this.#isSending = false;
    this.#promise();
  }

  #sending(what, share) {
    put(this.job, h("p", null, `${what} the images`), h("progress", { max: 1, value: share, "aria-label": what }));
  }

  #again(ms) {
    clearTimeout(this.#poll);
    if (this.#isOpen) this.#poll = setTimeout(() => this.#look(), ms);
  }

  async #look() {
    try {
      const { obstacle, jobs } = await get("/jobs");
      this.obstacle = obstacle;
      this.#promise();
      if (jobs[0] && !this.#isSending) this.#draw(jobs[0]);
      this.#again(jobs[0]?.state === "fitting" ? 700 : 10000);
    } catch {
      this.#again(5000);
    }
  }

  #draw(job) {
    const isNews = this.#seen?.id === job.id && this.#seen.state === "fitting" && job.state !== "fitting";
    if (this.#seen?.id === job.id && this.#seen.ended && job.ended) return; // what is read of it stays
    this.#seen = job;
    this.#promise();
    const seconds = ((job.ended ? new Date(job.ended) : new Date()) - new Date(job.began)) / 1000;
    if (job.state === "fitting") put(this.job, this.#running(job, seconds));
    else if (job.state === "done") put(this.job, this.#done(job, seconds));
    else if (job.state === "failed") put(this.job, h("p", { class: "problem" }, h("b", null, `${job.name} was not learnt: `), local(job.problem)));
    else put(this.job, h("p", { class: "muted" }, `Learning ${job.name} was cancelled.`));
    if (isNews) this.dispatchEvent(new CustomEvent("ended", { detail: job }));
  }

  #running(job, seconds) {
    const stage = ASIDE[job.stage] ?? job.stage;
    const isCounted = job.total > 1; // a stage of one step tells nothing until it is over
    const now = STAGES.findIndex(([name]) => name === stage);
    const rows = STAGES.map(([, words], index) => {
      const state = index < now ? "past" : index === now ? "now" : "later";
      const bar = index === now ? h("progress", { "aria-label": words, ...(isCounted ? { max: job.total, value: job.done } : {}) }) : null;
      const count = index === now && isCounted ? h("span", { class: "count" }, `${job.done} of ${job.total}`) : null;
      return h("li", { class: state, "aria-current": state === "now" ? "step" : undefined }, h("span", null, words), bar, count);
    });
    const cancel = () => remove(`/jobs/${job.id}`).then((ended) => this.#draw(ended), (problem) => say(problem.message, "problem"));
    return [
      h("h3", null, `Learning ${job.name}`),
      h("p", { class: "muted" }, `${counted(job.n_images, "image")}, ${duration(seconds)}. The line goes on meanwhile, and this page may be closed.`),
      h("ol", { class: "stages" }, rows),
      station.isEngineer ? h("button", { type: "button", onclick: cancel }, "Cancel") : null,
    ];
  }

  #done(job, seconds) {
    const { summary } = job;
    const left = summary.unreadable?.length ? ` ${counted(summary.unreadable.length, "file")} could not be read.` : "";
    return [
      h("h3", null, `${job.name}, version ${job.version}, is learnt`),
      h("p", null, `From ${counted(summary.n_fit, "image")} in ${duration(seconds)}; ${summary.n_calibrate} held out promise at most ${percent(summary.promised_false_reject)} false rejects.${left}`),
      h("a", { class: "button", href: `#models/${job.name}/${job.version}` }, "See the report, try it, activate it"),
    ];
  }
}

/** The files below a dropped folder. */
async function walk(entry, above) {
  if (entry.isFile) return [{ name: above + entry.name, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) }];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at most
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map((each) => walk(each, `${above}${entry.name}/`)))).flat();
}
