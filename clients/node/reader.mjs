// A second reader of makel's model folders, written from docs/model_folder.md: raw pixels in, verdict out.

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";

import ort from "onnxruntime-node";

import { interpolate, prepare, roundHalfEven } from "./pixels.mjs";
import { place, placeOnInput } from "./zones.mjs";

const f32 = Math.fround;

export class Reader {
  /** Open a model folder. It checks model.onnx against model.json, and no other file: `makel verify` does. */
  static async load(folder) {
    const manifest = JSON.parse(await readFile(join(folder, "model.json"), "utf8"));
    if (manifest.schema_version !== 1 || manifest.runtime !== "onnx") {
      const { schema_version: schema, runtime } = manifest;
      throw new Error(`${folder} has schema ${schema} and runtime ${runtime}; only 1 and onnx are read here`);
    }
    const bytes = await readFile(join(folder, "model.onnx"));
    if (createHash("sha256").update(bytes).digest("hex") !== manifest.files["model.onnx"]) {
      throw new Error(`${join(folder, "model.onnx")} is not the file that model.json names: copy the folder again`);
    }
    const options = { executionProviders: ["cpu"], intraOpNumThreads: 1 };
    return new Reader(manifest, await ort.InferenceSession.create(bytes, options));
  }

  constructor(manifest, session) {
    const { size, ...preprocessing } = manifest.preprocessing;
    this.preprocessing = { height: size, width: size, ...preprocessing };
    this.manifest = manifest;
    this.calibration = manifest.calibration;
    this.zones = manifest.zones ?? { image_size_px: null, mm_per_px: null, min_area_px: null, zones: [] };
    this.session = session;
  }

  /** The verdict on an image {data, height, width, channels}, RGB or grey. */
  async inspect(image) {
    const cut = this.prepare(image);
    const { scores, maps } = await this.run(cut.prepared);
    const anomalyMap = this.enlarge(maps, cut, image.height, image.width);
    const regions = this.findRegions(anomalyMap, image.height, image.width);
    return this.decide(Math.max(...scores), cut.isTiled ? null : maps[0], regions);
  }

  /** The tiles of an image, or the whole of it as one, each with where it lies and as the network takes it. */
  prepare(image) {
    const size = this.zones.image_size_px;
    if (this.zones.zones.length && size && Math.abs((image.width * size[1]) / (image.height * size[0]) - 1) > 0.01) {
      throw new Error(`the image is ${image.width}x${image.height}; the zones were drawn on ${size.join("x")}`);
    }
    const tiling = (length) => this.manifest.tiling ?? { tile_px: length, overlap_px: 0 };
    const [down, across] = [image.height, image.width].map((length) => cut(length, tiling(length)));
    const tile = (top, left) => prepare(crop(image, top, left, down.side, across.side), this.preprocessing);
    const prepared = down.starts.flatMap((top) => across.starts.map((left) => tile(top, left)));
    return { prepared, down, across, isTiled: Boolean(this.manifest.tiling) };
  }

  /** Score and map, of the input's size, of each prepared tile. */
  async run(prepared) {
    const { height, width } = this.preprocessing;
    const [scores, maps] = [[], []];
    for (const data of prepared) {
      const found = await this.session.run({ image: new ort.Tensor("float32", data, [1, 3, height, width]) });
      const [score, map] = [found.score.data[0], found.anomaly_map.data];
      if (!Number.isFinite(score) || !map.every(Number.isFinite)) throw new Error("the network gives no finite number");
      scores.push(score);
      maps.push(map);
    }
    return { scores, maps };
  }

  /** The anomaly map at the image's own size: of tiles the weighted sum of theirs; 0 where nothing is inspected. */
  enlarge(maps, { down, across, isTiled }, height, width) {
    const input = { height: this.preprocessing.height, width: this.preprocessing.width, channels: 1 };
    const found = new Float32Array(height * width);
    maps.forEach((data, number) => {
      const [i, j] = [Math.floor(number / across.starts.length), number % across.starts.length];
      const large = interpolate({ ...input, data }, down.side, across.side).data;
      for (let y = 0; y < down.side; y++) {
        for (let x = 0; x < across.side; x++) {
          const value = f32(f32(large[y * across.side + x] * down.weights[i][y]) * across.weights[j][x]);
          found[(down.starts[i] + y) * width + across.starts[j] + x] += value;
        }
      }
    });
    if (this.zones.zones.length && !isTiled) {
      place(this.zones, height, width).ignored.forEach((isIgnored, i) => isIgnored && (found[i] = 0));
    }
    return found;
  }

  /** The 8-connected areas of a map of the image's size above the threshold of their zone, highest peak first. */
  findRegions(anomalyMap, height, width) {
    const { zones, min_area_px: leastArea, mm_per_px: mm } = this.zones;
    const layout = zones.length ? place(this.zones, height, width) : null;
    const levels = [this.calibration, ...zones.map((zone) => zone.calibration ?? this.calibration)].map((each) =>
      f32(each.pixel_threshold),
    );
    const isOpen = anomalyMap.map((value, i) => value > levels[layout?.labels[i] ?? 0] && !layout?.ignored[i]);
    const size = this.zones.image_size_px;
    const perReference = size ? (width * height) / (size[0] * size[1]) : 1;
    const found = [];
    isOpen.forEach((start, first) => {
      if (!isOpen[first]) return;
      isOpen[first] = 0;
      const [waiting, votes] = [[first], new Array(zones.length + 1).fill(0)];
      let [area, peak, x0, y0, x1, y1] = [0, -Infinity, width, height, 0, 0];
      while (waiting.length) {
        const at = waiting.pop();
        const [y, x] = [Math.floor(at / width), at % width];
        [area, peak] = [area + 1, Math.max(peak, anomalyMap[at])];
        [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x + 1), Math.max(y1, y + 1)];
        votes[layout?.labels[at] ?? 0]++;
        for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
          for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
            if (!isOpen[v * width + u]) continue;
            isOpen[v * width + u] = 0;
            waiting.push(v * width + u);
          }
        }
      }
      if (area < (leastArea ?? 0) * perReference) return;
      const zone = ["", ...zones.map((each) => each.name)][votes.indexOf(Math.max(...votes))];
      const areaMm2 = mm === null ? null : area * (mm ** 2 / perReference);
      found.push({ box_px: [x0, y0, x1, y1], area_px: area, peak, zone, area_mm2: areaMm2 });
    });
    const order = (one, other) => [0, 1, 2, 3].map((i) => one.box_px[i] - other.box_px[i]).find((each) => each) ?? 0;
    return found.sort((one, other) => other.peak - one.peak || order(one, other));
  }

  /** The verdict that follows from the score, the network's own map (null with tiles) and the regions. */
  decide(score, smallMap, regions) {
    const parts = [{ name: "", score, calibration: this.calibration }];
    const judged = this.zones.zones.map((zone, i) => [zone, i + 1]).filter(([zone]) => zone.calibration);
    if (judged.length && smallMap) {
      const labels = placeOnInput(this.zones, this.preprocessing.height, this.preprocessing.width);
      for (const [{ name, calibration }, label] of judged) {
        const highest = (most, each, i) => (labels[i] === label ? Math.max(most, each) : most);
        parts.push({ name, calibration, score: smallMap.reduce(highest, -Infinity) });
      }
    }
    const names = parts.map((part) => part.name);
    const shown = new Set(regions.map((region) => (names.includes(region.zone) ? region.zone : "")));
    const total = parts.reduce((sum, part) => sum + part.calibration.promised_false_reject, 0);
    for (const part of parts) {
      const { image_threshold: threshold, image_scores: good } = part.calibration;
      const isShown = this.zones.min_area_px === null || shown.has(part.name);
      part.verdict = part.score > threshold && isShown ? "reject" : "pass";
      part.p_value = (1 + good.filter((each) => each >= part.score).length) / (good.length + 1);
    }
    return {
      verdict: parts.some((part) => part.verdict === "reject") ? "reject" : "pass",
      score: Math.max(...parts.map((part, i) => (i ? inUnitsOf(this.calibration, part) : part.score))),
      threshold: this.calibration.image_threshold,
      p_value: Math.min(1, ...parts.map((part) => part.p_value * (total / part.calibration.promised_false_reject))),
      regions,
      zones: parts.slice(1).map(({ calibration, ...said }) => ({ ...said, threshold: calibration.image_threshold })),
      model_id: this.manifest.model_id,
    };
  }
}

/** A zone's score so scaled that its threshold becomes the image's; on the same side of it, rounding or not. */
function inUnitsOf({ image_threshold: ours }, { score, calibration: { image_threshold: theirs } }) {
  const factor = Math.min(ours, theirs) > 0 ? ours / theirs : 0;
  const scaled = factor > 0 && factor < Infinity ? score * factor : ours + (score - theirs);
  return score > theirs ? Math.max(scaled, nextAbove(ours)) : Math.min(scaled, ours);
}

function nextAbove(value) {
  const number = new Float64Array([value]);
  new BigInt64Array(number.buffer)[0] += value >= 0 ? 1n : -1n;
  return number[0];
}

/** The tiles along one side: their length, where they begin, and the weight of each of their pixels. */
function cut(length, { tile_px: tile, overlap_px: overlap }) {
  const side = Math.min(tile, length);
  const count = 1 + Math.ceil((length - side) / (tile - overlap));
  const starts = Array.from({ length: count }, (_, i) => roundHalfEven((i * (length - side)) / Math.max(1, count - 1)));
  const shapes = starts.map((_, number) =>
    Array.from({ length: side }, (_, i) => {
      const rise = (at) => (at < overlap ? Math.sin((Math.PI / 2) * ((at + 0.5) / overlap)) ** 2 : 1);
      return (number > 0 ? rise(i) : 1) * (number < count - 1 ? rise(side - 1 - i) : 1);
    }),
  );
  const total = new Float64Array(length);
  starts.forEach((start, number) => shapes[number].forEach((each, i) => (total[start + i] += each)));
  const weights = starts.map((at, number) => Float32Array.from(shapes[number], (each, i) => each / total[at + i]));
  return { side, starts, weights };
}

function crop({ data, width, channels }, top, left, height, wide) {
  const found = new data.constructor(height * wide * channels);
  for (let y = 0; y < height; y++) {
    const from = ((top + y) * width + left) * channels;
    found.set(data.subarray(from, from + wide * channels), y * wide * channels);
  }
  return { data: found, height, width: wide, channels };
}
