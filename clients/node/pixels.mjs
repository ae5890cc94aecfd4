// Raw pixels to what a model takes, step by step as docs/model_folder.md says. An image is
// {data, height, width, channels}: data a Uint8Array, Uint16Array or Float32Array, row by row, channels interleaved.

const f32 = Math.fround;

/** The nearest whole number, of two equally near the even one. */
export function roundHalfEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}

/** A store function that rounds and saturates as the type of `data` asks. */
function storeInto(data) {
  if (data instanceof Float32Array) return (at, value) => void (data[at] = value);
  const most = data instanceof Uint8Array ? 255 : 65535;
  return (at, value) => void (data[at] = Math.min(most, Math.max(0, roundHalfEven(value))));
}

/** An image of the type of another, and what stores a value into it. */
function empty(like, height, width) {
  const data = new like.data.constructor(height * width * like.channels);
  return [{ ...like, height, width, data }, storeInto(data)];
}

const scaleOf = (from, to) => 1 / (to / from); // in this order, as OpenCV divides

/** OpenCV's INTER_AREA to a size that is nowhere larger. */
export function shrink(image, height, width) {
  const down = scaleOf(image.height, height);
  const across = scaleOf(image.width, width);
  const isWhole = (scale) => Math.abs(scale - roundHalfEven(scale)) < Number.EPSILON;
  if (isWhole(down) && isWhole(across)) {
    return shrinkByWhole(image, height, width, roundHalfEven(down), roundHalfEven(across));
  }
  const { data, channels } = image;
  const [result, store] = empty(image, height, width);
  const columns = shares(image.width, width, across);
  const [row, sum] = [new Float32Array(width * channels), new Float32Array(width * channels)];
  shares(image.height, height, down).forEach((parts, y) => {
    parts.forEach(([sourceY, beta], number) => {
      row.fill(0);
      columns.forEach((of, x) => {
        for (const [sourceX, alpha] of of) {
          const at = (sourceY * image.width + sourceX) * channels;
          for (let c = 0; c < channels; c++) row[x * channels + c] += f32(data[at + c] * alpha);
        }
      });
      row.forEach((value, i) => (sum[i] = number ? sum[i] + f32(beta * value) : beta * value));
    });
    sum.forEach((value, i) => store(y * sum.length + i, value));
  });
  return result;
}

/** For each new position the old ones it covers, with their float32 weights; a sliver of a thousandth is left out. */
function shares(from, to, scale) {
  return Array.from({ length: to }, (_, index) => {
    const [begin, end] = [index * scale, index * scale + scale];
    const cell = Math.min(scale, from - begin);
    const last = Math.min(Math.floor(end), from - 1);
    const first = Math.min(Math.ceil(begin), last);
    const found = [];
    if (first - begin > 1e-3) found.push([first - 1, f32((first - begin) / cell)]);
    for (let at = first; at < last; at++) found.push([at, f32(1 / cell)]);
    if (end - last > 1e-3) found.push([last, f32(Math.min(end - last, 1, cell) / cell)]);
    return found;
  });
}

function shrinkByWhole(image, height, width, down, across) {
  const { data, channels } = image;
  const [result, store] = empty(image, height, width);
  const isHalf = down === 2 && across === 2 && !(data instanceof Float32Array);
  const share = f32(1 / (down * across));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let i = 0; i < down; i++) {
          let at = ((y * down + i) * image.width + x * across) * channels + c;
          for (let j = 0; j < across; j++, at += channels) sum += data[at];
        }
        // Halves of integers are rounded up, everything else to even.
        store((y * width + x) * channels + c, isHalf ? (sum + 2) >> 2 : f32(f32(sum) * share));
      }
    }
  }
  return result;
}

/**
 * OpenCV's INTER_LINEAR. Bytes go through whole numbers, to the
 * last bit as OpenCV does on every machine. 16 bits and float32 it computes in two ways, with Intel's IPP as here and
 * else in float32 throughout: they differ in the last bit.
 */
export function interpolate(image, height, width) {
  const { data, channels } = image;
  const [result, store] = empty(image, height, width);
  const isByte = data instanceof Uint8Array;
  const columns = neighbours(image.width, width, isByte, true);
  const across = (y) => {
    const line = new (isByte ? Int32Array : Float32Array)(width * channels);
    columns.forEach(([left, right, a, b], x) => {
      for (let c = 0; c < channels; c++) {
        const one = data[(y * image.width + left) * channels + c];
        const other = data[(y * image.width + right) * channels + c];
        line[x * channels + c] = isByte ? one * a + other * b : one + f32(other - one) * b;
      }
    });
    return line;
  };
  const lines = new Map();
  neighbours(image.height, height, isByte, false).forEach(([upper, lower, a, b], y) => {
    for (const at of lines.keys()) if (at < upper) lines.delete(at);
    for (const at of [upper, lower]) if (!lines.has(at)) lines.set(at, across(at));
    const [one, other] = [lines.get(upper), lines.get(lower)];
    for (let i = 0; i < one.length; i++) {
      const value = isByte
        ? (((a * (one[i] >> 4)) >> 16) + ((b * (other[i] >> 4)) >> 16) + 2) >> 2
        : f32(one[i] + f32(other[i] - one[i]) * b);
      store(y * one.length + i, value);
    }
  });
  return result;
}

/**
 * For each new position the two old ones beside it and their weights; pixel centres lie at halves. Of bytes weights are
 * in 2048ths; beyond the outermost centres a column has all of it, and a row is mixed with itself, rounding as it does.
 */
function neighbours(from, to, isByte, areColumns) {
  const inside = (at) => Math.min(Math.max(at, 0), from - 1);
  return Array.from({ length: to }, (_, index) => {
    const exact = (index + 0.5) * scaleOf(from, to) - 0.5;
    const place = isByte ? f32(exact) : exact;
    const at = Math.floor(place);
    const weight = isByte && areColumns && (at < 0 || at >= from - 1) ? 0 : f32(place - at);
    const both = isByte ? [f32(1 - weight), weight].map((each) => roundHalfEven(f32(each * 2048))) : [null, weight];
    return [inside(at), inside(at + 1), ...both];
  });
}

/** An image at the model's input size, in its own type. */
export function fit(image, height, width) {
  let pixels = image;
  while (pixels.width % (2 * width) === 0 && pixels.height % (2 * height) === 0) {
    pixels = shrink(pixels, pixels.height / 2, pixels.width / 2);
  }
  const [high, wide] = [Math.min(pixels.height, height), Math.min(pixels.width, width)];
  if (high !== pixels.height || wide !== pixels.width) pixels = shrink(pixels, high, wide);
  return high === height && wide === width ? pixels : interpolate(pixels, height, width);
}

/** (3, height, width) float32 in [0, 1] of an 8- or 16-bit image, for a model with this `preprocessing`. */
export function prepare(image, preprocessing) {
  const { height, width, white_level: whiteLevel } = preprocessing;
  const [bits, expected] = [8 * image.data.BYTES_PER_ELEMENT, whiteLevel === null ? 8 : 16];
  if (bits !== expected) throw new Error(`the image is ${bits}-bit; this model takes ${expected}-bit images`);
  if (image.channels !== 1 && image.channels !== 3) {
    throw new Error(`the image has ${image.channels} channels; 1 or 3 (RGB) are expected`);
  }
  const white = whiteLevel ?? 255;
  let pixels = fit(image, height, width);
  if (pixels.channels === 3 && preprocessing.colour === "grey") pixels = withoutTint(pixels, white);
  const [size, prepared] = [height * width, new Float32Array(3 * height * width)];
  for (let c = 0; c < 3; c++) {
    for (let i = 0; i < size; i++) {
      const value = pixels.channels === 1 ? pixels.data[i] : pixels.data[3 * i + c];
      prepared[c * size + i] = Math.min(1, f32(value / white));
    }
  }
  return prepared;
}

/** What a model fitted on grey takes of RGB: grey, and of each pixel the colour beyond a tint. */
function withoutTint(pixels, white) {
  const size = pixels.height * pixels.width;
  const [grey, kept] = [new Float32Array(size), new Float32Array(size)];
  const [rounding, balance] = [f32((8 / 255) * white), f32(0.03)];
  for (let i = 0; i < size; i++) {
    const [r, g, b] = pixels.data.subarray(3 * i, 3 * i + 3);
    grey[i] = (r * 9798 + g * 19235 + b * 3735 + 16384) >> 15;
    const highest = Math.max(r, g, b);
    const spread = highest - Math.min(r, g, b);
    const allowed = f32(rounding + f32(balance * highest));
    kept[i] = 1 - f32(allowed / Math.max(spread, allowed));
  }
  const data = Float32Array.from(pixels.data, (value, i) => {
    const at = Math.floor(i / 3);
    return grey[at] + f32(kept[at] * f32(value - grey[at]));
  });
  return { ...pixels, data };
}
