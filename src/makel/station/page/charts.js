// Charts, drawn by hand. Each says in words what it shows.

import { s } from "./dom.js";
import { counted, figure, percent, time } from "./words.js";

const WIDTH = 400;
const LEFT = 46;
const RIGHT = 10;

function frame(height, words, ...children) {
  return s("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": words }, children);
}

function label(x, y, text, anchor = "end", kind = "tick") {
  return s("text", { x, y, "text-anchor": anchor, class: kind }, text);
}

function rule(x1, y1, x2, y2, kind) {
  return s("line", { x1, y1, x2, y2, class: kind });
}

/** p-values of the latest parts on a logarithmic scale, with the promised budget; what lies below it was rejected. */
export function pValueChart(decisions, promised, floor) {
  const height = 170;
  const [top, bottom] = [10, height - 20];
  const lowest = Math.min(floor ?? 0.01, promised ?? 1, 0.1);
  const decades = -Math.log10(lowest) * 1.08;
  const y = (p) => top + (Math.min(decades, -Math.log10(Math.max(p, 1e-9))) / decades) * (bottom - top);
  const step = (WIDTH - LEFT - RIGHT) / Math.max(40, decisions.length);
  const start = WIDTH - RIGHT - step * decisions.length;
  const drawn = [];
  for (const p of [1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003]) {
    if (p >= lowest * 0.85) drawn.push(rule(LEFT, y(p), WIDTH - RIGHT, y(p), "grid"), label(LEFT - 6, y(p) + 4, String(p)));
  }
  if (promised) {
    drawn.push(s("rect", { x: LEFT, y: y(promised), width: WIDTH - LEFT - RIGHT, height: bottom - y(promised) + 6, class: "beyond" }));
    drawn.push(rule(LEFT, y(promised), WIDTH - RIGHT, y(promised), "budget"));
    drawn.push(label(LEFT + 4, y(promised) - 5, `budget ${percent(promised)}`, "start", "budget-label"));
  }
  decisions.forEach((decision, index) => {
    const x = start + step * (index + 0.5);
    const said = `${decision.name || `part ${decision.number}`}, ${time(decision.at)}: ${decision.verdict}, p = ${figure(decision.p_value)}`;
    let mark;
    if (decision.p_value === null) mark = s("rect", { x: x - 3.5, y: bottom - 3.5, width: 7, height: 7, class: "mark unjudged" });
    else if (decision.verdict === "reject") mark = s("path", { d: `M${x} ${y(decision.p_value) - 5}l5 9h-10z`, class: "mark reject" });
    else mark = s("circle", { cx: x, cy: y(decision.p_value), r: 2.6, class: "mark pass" });
    mark.append(s("title", null, said));
    drawn.push(mark);
  });
  drawn.push(label(LEFT, height - 5, `${counted(decisions.length, "part")}, newest right`, "start"));
  const rejects = decisions.filter((decision) => decision.verdict === "reject").length;
  return frame(height, `p-values of the latest ${counted(decisions.length, "part")}: ${rejects} rejected, budget ${percent(promised)}`, drawn);
}

/** The reject rate over the last `window` parts, as it went. */
export function rateChart(decisions, promised, window) {
  const height = 96;
  const [top, bottom] = [8, height - 8];
  const rates = decisions.map((_, index) => {
    const seen = decisions.slice(Math.max(0, index + 1 - window), index + 1);
    return seen.filter((decision) => decision.verdict === "reject").length / seen.length;
  });
  const shown = rates.slice(Math.min(9, Math.max(0, rates.length - 2))); // the rate of one or two parts says nothing
  const most = Math.max(0.02, 1.6 * (promised ?? 0), ...shown.map((rate) => 1.15 * rate));
  const y = (rate) => bottom - (rate / most) * (bottom - top);
  const x = (index) => LEFT + (index / Math.max(1, shown.length - 1)) * (WIDTH - LEFT - RIGHT);
  const drawn = [0, most / 2, most].map((rate) => [rule(LEFT, y(rate), WIDTH - RIGHT, y(rate), "grid"), label(LEFT - 6, y(rate) + 4, percent(rate))]).flat();
  if (promised) drawn.push(rule(LEFT, y(promised), WIDTH - RIGHT, y(promised), "budget"));
  if (shown.length > 1) drawn.push(s("path", { d: `M${shown.map((rate, index) => `${x(index)} ${y(rate)}`).join("L")}`, class: "course" }));
  return frame(height, `Reject rate over the last ${window} parts: ${percent(rates.at(-1) ?? null)} now`, drawn);
}

/** Scores of held-out good images, upwards, and of recent parts, downwards, with a threshold. */
export function scoreHistogram(calibration, recent, threshold, own) {
  const [width, height, left, right] = [880, 230, 8, 8];
  const [top, axis, bottom] = [20, 116, height - 26];
  const low = Math.min(...calibration, ...recent);
  const good = calibration.at(-1);
  // Defects may score a hundred times as high: what lies far out shares the last bar.
  const enough = Math.max(good + 0.6 * (good - low), threshold + 0.15 * (good - low)) || low + 1;
  const bins = 56;
  // The threshold is where one bar ends and the next begins, and a score on it passes: no bar stands on both sides.
  const below = Math.round((bins * (threshold - low)) / (enough - low));
  const step = below > 0 ? (threshold - low) / below : (enough - low) / bins;
  const high = low + bins * step;
  const share = (scores) => {
    const counts = new Array(bins).fill(0);
    for (const score of scores) counts[Math.min(bins - 1, Math.max(0, Math.ceil((score - low) / step - 1e-9) - 1))] += 1;
    return counts.map((count) => count / Math.max(1, scores.length));
  };
  const [held, seen] = [share(calibration), share(recent)];
  const x = (score) => left + ((Math.min(high, score) - low) / (high - low)) * (width - left - right);
  const wide = (width - left - right) / bins;
  const bar = (most, kind, room) => (value, index) => {
    const tall = (value / most) * room;
    return value ? s("rect", { x: left + index * wide + 1, y: kind === "held" ? axis - tall : axis, width: wide - 2, height: tall, class: `bar ${kind}` }) : null;
  };
  const drawn = [
    s("rect", { x: x(threshold), y: top, width: width - right - x(threshold), height: bottom - top, class: "beyond" }),
    held.map(bar(Math.max(...held), "held", axis - top)),
    seen.map(bar(Math.max(...seen, 1e-9), "seen", bottom - axis)),
    rule(left, axis, width - right, axis, "axis"),
    rule(x(own), top, x(own), bottom, "own"),
    rule(x(threshold), top - 12, x(threshold), bottom, "threshold"),
    label(x(threshold) + 6, top - 4, "reject", "start", "budget-label"),
    label(left, height - 8, `score ${figure(low, 3)}`, "start"),
    label(width - right, height - 8, `${figure(high, 3)} and more`),
  ];
  const words = `Scores of ${calibration.length} held-out good images and ${recent.length} recent parts; threshold ${figure(threshold)}`;
  return s("svg", { class: "chart wide", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words }, drawn);
}

/** Blocks of parts, each with the lowest p-value of its tests; a triangle is a block that is not what was calibrated. */
export function blockChart(blocks, level) {
  const height = 120;
  const [top, bottom] = [10, height - 20];
  const least = 1e-6;
  const y = (p) => top + (Math.log10(Math.max(p, least)) / Math.log10(least)) * (bottom - top);
  const step = (WIDTH - LEFT - RIGHT) / Math.max(20, blocks.length);
  const drawn = ["1", "10⁻²", "10⁻⁴", "10⁻⁶"].map((words, index) => [rule(LEFT, y(100 ** -index), WIDTH - RIGHT, y(100 ** -index), "grid"), label(LEFT - 6, y(100 ** -index) + 4, words)]).flat();
  drawn.push(s("rect", { x: LEFT, y: y(level), width: WIDTH - LEFT - RIGHT, height: bottom - y(level) + 6, class: "beyond" }), rule(LEFT, y(level), WIDTH - RIGHT, y(level), "budget"));
  blocks.forEach((block, index) => {
    const p = Math.min(block.p_scores ?? 1, block.p_rejects, ...block.findings.map((finding) => finding.p_value));
    const x = WIDTH - RIGHT - step * (blocks.length - index - 0.5);
    const isOff = block.findings.length > 0;
    const mark = isOff ? s("path", { d: `M${x} ${y(p) - 5}l5 9h-10z`, class: "mark reject" }) : s("circle", { cx: x, cy: y(p), r: 3.4, class: "mark pass" });
    mark.append(s("title", null, `Parts ${block.first} to ${block.last}: p = ${figure(p, 2)}. ${block.findings.map((finding) => finding.words).join(" ")}`));
    drawn.push(mark);
  });
  drawn.push(label(LEFT, height - 5, "newest right", "start"));
  const off = blocks.filter((block) => block.findings.length).length;
  return frame(height, `${counted(blocks.length, "block")} of parts tested, ${off} not as calibrated`, drawn);
}

/** How the p-values of parts that passed lie between 0 and 1: even where the line is as it was calibrated. */
export function uniformityChart(values) {
  const height = 120;
  const [top, bottom] = [8, height - 20];
  const bins = 10;
  const counts = new Array(bins).fill(0);
  for (const value of values) counts[Math.min(bins - 1, Math.floor(value * bins))] += 1;
  const expected = values.length / bins;
  const most = Math.max(expected * 2, ...counts, 1);
  const wide = (WIDTH - LEFT - RIGHT) / bins;
  const y = (count) => bottom - (count / most) * (bottom - top);
  const drawn = counts.map((count, index) => s("rect", { x: LEFT + index * wide + 2, y: y(count), width: wide - 4, height: bottom - y(count), class: "bar held" }));
  drawn.push(rule(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"), rule(LEFT, y(expected), WIDTH - RIGHT, y(expected), "expected"));
  drawn.push(label(LEFT - 6, y(expected) + 4, "even"), label(LEFT, height - 5, "p = 0", "start"), label(WIDTH - RIGHT, height - 5, "p = 1"));
  return frame(height, `p-values of the latest ${counted(values.length, "part")}: ${counts.join(", ")} in ten equal steps`, drawn);
}
