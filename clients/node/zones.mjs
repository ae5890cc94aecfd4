// Where the zones of a model lie: on an image of any size, and on the model's input.

import { PNG } from "pngjs";

import { fit } from "./pixels.mjs";

/** 1 for every pixel whose centre lies in a zone. Of a polygon, each edge turns round all that is right of it. */
function outline(zones, zone, height, width) {
  const found = new Uint8Array(height * width);
  if (zone.mask_png !== null) {
    const mask = PNG.sync.read(Buffer.from(zone.mask_png, "base64")); // RGBA
    return found.map((_, i) => {
      const row = Math.floor(((Math.floor(i / width) + 0.5) * mask.height) / height);
      const column = Math.floor((((i % width) + 0.5) * mask.width) / width);
      return mask.data[4 * (row * mask.width + column)] > 0 ? 1 : 0;
    });
  }
  const [wide, high] = zones.image_size_px;
  const corners = zone.polygon.map(([x, y]) => [(x * width) / wide, (y * height) / high]);
  corners.forEach(([x0, y0], number) => {
    const [x1, y1] = corners[(number + 1) % corners.length];
    const [low, top] = [Math.min(y0, y1), Math.max(y0, y1)].map((y) => Math.ceil(y - 0.5));
    for (let y = Math.max(0, low); y < Math.min(height, top); y++) {
      const x = x0 + ((y + 0.5 - y0) * (x1 - x0)) / (y1 - y0);
      const first = Math.min(Math.max(Math.ceil(x - 0.5), 0), width);
      for (let i = y * width + first; i < (y + 1) * width; i++) found[i] ^= 1;
    }
  });
  return found;
}

/** {ignored, labels} of an image: 0 is no zone, else 1 + the zone's place in the list; of no account where ignored. */
export function place(zones, height, width) {
  const [labels, ignored] = [new Uint8Array(height * width), new Uint8Array(height * width)];
  const hasIncluded = zones.zones.some((zone) => zone.kind === "include");
  if (hasIncluded) ignored.fill(1);
  // From the least to the most important, the first of each kind last: what is painted later stays.
  for (const kind of ["include", "inspect", "ignore"]) {
    for (let number = zones.zones.length; number > 0; number--) {
      const zone = zones.zones[number - 1];
      if (zone.kind !== kind) continue;
      outline(zones, zone, height, width).forEach((isInside, i) => {
        if (!isInside) return;
        labels[i] = number;
        if (kind !== "inspect") ignored[i] = kind === "ignore" ? 1 : 0;
      });
    }
  }
  return { ignored, labels };
}

/** Labels of the zones that are judged by themselves, on the model's input; 0 where none is or a pixel is ignored. */
export function placeOnInput(zones, height, width) {
  const [wide, high] = zones.image_size_px;
  const whole = place(zones, high, wide);
  const cover = fit({ data: Float32Array.from(whole.ignored), height: high, width: wide, channels: 1 }, height, width);
  const [rows, columns] = [centres(high, height), centres(wide, width)];
  return new Uint8Array(height * width).map((_, i) => {
    const label = whole.labels[rows[Math.floor(i / width)] * wide + columns[i % width]];
    const isJudged = label > 0 && zones.zones[label - 1].kind === "inspect";
    return isJudged && cover.data[i] === 0 ? label : 0;
  });
}

/** Where the centres of new pixels lie among the old, added up as OpenCV's INTER_NEAREST_EXACT does: it decides ties. */
function centres(from, to) {
  let place = from / to / 2;
  return Array.from({ length: to }, () => {
    const at = Math.min(Math.floor(place), from - 1);
    place += from / to;
    return at;
  });
}
